"""Where things stand among six interleaved rows of activations; see ``activations.py``."""

from __future__ import annotations

from pyrllama.cpu.records import BLOCK_WORDS, ROWS_AT_ONCE, SUMS

COLUMN_BYTES = 4 * ROWS_AT_ONCE
"""Bytes of a column of six rows as floats, or of a word of each."""
SCALES, SUMS_OF_ROWS, SCALED_SUMS = (word * COLUMN_BYTES for word in (8, 9, 9 + SUMS))
"""Of these, sums are what products begin with, to take an offset of the weights off: where CPUs sum
products in 32 bits, ``START_OFFSET`` times each sum taken off zero, and else pairs of 16 bits."""
BLOCK_BYTES = BLOCK_WORDS * COLUMN_BYTES
"""A block of six rows as bytes: eight words of each row, then scales and sums of all rows."""
GREATEST, SUMS_OF_HALVES, SUMS_OF_BLOCKS = (SCALED_SUMS + i * COLUMN_BYTES for i in range(3))
"""Words of the wide form, whose products want no scaled sums: the greatest sum of magnitudes of 16
columns of the super-block, in its first block; the sums of the first and the last 16 columns, 16
bits each; in every second block, from the first on, the sums of it and of the next."""
