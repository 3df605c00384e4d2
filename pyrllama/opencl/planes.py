"""Quantised blocks cut into planes, so that a device's loads of each are neighbours in memory.

The 32 columns of a unit are four or two bits of each; what else a block has lies beside the units,
for every row in three planes one behind the other:

======  ====  ===========================  ===================  ==========================
type    unit  head of a block              high bits of a unit  tail of a block
======  ====  ===========================  ===================  ==========================
Q4_K    16    16: as in the file           -                    -
Q5_K    16    16: as in the file           4                    -
Q6_K    16    16: scales                   8                    2: d
IQ4_XS  16    8: as in the file            -                    -
IQ4_NL  16    -                            -                    2: d
Q4_1    16    -                            -                    4: d, m
Q5_0    16    -                            4                    2: d
Q5_1    16    -                            4                    4: d, m
MXFP4   16    -                            -                    1: exponent
Q2_K    8     16: scales and minimums      -                    4: d, dmin
Q3_K    8     16: scales, d, 2 empty       4                    -
TQ2_0   8     -                            -                    2: d
TQ1_0   8     -                            -                    2: d
======  ====  ===========================  ===================  ==========================

Blocks have 256 columns, those of IQ4_NL to MXFP4 32.  No bit is lost or made, so that the numbers
are the file's; only their places are others.  TQ1_0 alone is spelled anew: its ternary digits, five
a byte in the file, take two bits each, as TQ2_0's do.  ``pyrllama.quants`` says what all mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.core import TensorType
from pyrllama.quants import dequantize
from pyrllama.quants.bits import join, split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

UNIT_COLS = 32
SIDE_ALIGNMENT = 16
"""Bytes to which what stands beside a row is padded: the longest load of it."""
_HALF_UNIT = 16
_PAIRS = 4
"""Columns of a unit that share a word in each of its fields of two bits."""
_LOW_4, _4, _2 = np.uint8(0x0F), np.uint8(4), np.uint8(2)


class Parts(NamedTuple):
    """Blocks in pieces, each ``(blocks, bytes)``, in the order in which they lie."""

    units: Bytes
    head: Bytes | None = None
    high: Bytes | None = None
    tail: Bytes | None = None


@dataclass(frozen=True, slots=True)
class Planes:
    """How a type is cut; sizes are bytes, as kernels are built with them."""

    cut: Callable[[Bytes], Parts]
    level_bits: int = 4
    """Bits of a level that stand in the units."""
    block_units: int = 8
    head: int = 0
    high: int = 0
    tail: int = 0

    @property
    def defines(self) -> Mapping[str, int]:
        """What the kernels of the type are built with."""
        return {
            "PLANES": 1,
            "LEVEL_BITS": self.level_bits,
            "BLOCK_UNITS": self.block_units,
            "HEAD": self.head,
            "HIGH": self.high,
            "TAIL": self.tail,
        }

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit."""
        return UNIT_COLS * self.level_bits // 8

    def side_bytes(self, n_units: int) -> int:
        """Return the bytes beside a row of so many units."""
        used = n_units // self.block_units * (self.head + self.tail) + n_units * self.high
        return -(-used // SIDE_ALIGNMENT) * SIDE_ALIGNMENT

    def pack(self, blocks: Bytes, n_rows: int) -> tuple[Bytes, Bytes]:
        """Return the units of whole rows of blocks, and what stands beside them, row by row."""
        parts = self.cut(blocks)
        beside = [part.reshape(n_rows, -1) for part in parts[1:] if part is not None]
        units = np.ascontiguousarray(parts.units).reshape(n_rows, -1)
        side = np.zeros((n_rows, self.side_bytes(units.shape[1] // self.unit_bytes)), np.uint8)
        used = np.concatenate(beside, axis=1)
        side[:, : used.shape[1]] = used
        return units, side


def _nibbles(levels: Bytes) -> Bytes:
    """Return four bits of each column: of a byte's, the low ones 16 columns before the high."""
    return join(levels, 4, _HALF_UNIT)


def _bit_pairs(levels: Bytes) -> Bytes:
    """Return two bits of each column: a byte has those of four columns that are 4 apart."""
    return join(levels, 2, _PAIRS)


def _single_bits(levels: Bytes) -> Bytes:
    """Return one bit of each column: a byte has those of eight columns that are 4 apart."""
    return join(levels, 1, _PAIRS)


def _cut_q4_k(blocks: Bytes) -> Parts:
    return Parts(_nibbles(split(blocks[:, 16:], 4, 32)), head=blocks[:, :16])


def _cut_q5_k(blocks: Bytes) -> Parts:
    high = _single_bits(split(blocks[:, 16:48], 1, 32))
    return Parts(_nibbles(split(blocks[:, 48:], 4, 32)), head=blocks[:, :16], high=high)


def _cut_q6_k(blocks: Bytes) -> Parts:
    high = _bit_pairs(split(blocks[:, 128:192], 2, 32))
    units = _nibbles(split(blocks[:, :128], 4, 64))
    return Parts(units, head=blocks[:, 192:208], high=high, tail=blocks[:, 208:])


def _cut_q2_k(blocks: Bytes) -> Parts:
    units = _bit_pairs(split(blocks[:, 16:80], 2, 32))
    return Parts(units, head=blocks[:, :16], tail=blocks[:, 80:])


def _cut_q3_k(blocks: Bytes) -> Parts:
    high = _single_bits(split(blocks[:, :32], 1, 32))
    units = _bit_pairs(split(blocks[:, 32:96], 2, 32))
    return Parts(units, head=np.pad(blocks[:, 96:], ((0, 0), (0, 2))), high=high)


def _cut_tq2_0(blocks: Bytes) -> Parts:
    return Parts(_bit_pairs(split(blocks[:, :64], 2, 32)), tail=blocks[:, 64:])


def _cut_tq1_0(blocks: Bytes) -> Parts:
    ones = blocks.copy()
    ones[:, 52:].view("<f2")[:] = 1  # in the place of d, so that digits come out
    digits = dequantize(TensorType.TQ1_0, ones, 256) + 1
    return Parts(_bit_pairs(digits.astype(np.uint8)), tail=blocks[:, 52:])


def _cut_q5_0(blocks: Bytes) -> Parts:
    high = _single_bits(split(blocks[:, 2:6], 1, 1))
    return Parts(blocks[:, 6:], high=high, tail=blocks[:, :2])


def _cut_q5_1(blocks: Bytes) -> Parts:
    high = _single_bits(split(blocks[:, 4:8], 1, 1))
    return Parts(blocks[:, 8:], high=high, tail=blocks[:, :4])


PLANES = {
    TensorType.Q4_K: Planes(_cut_q4_k, head=16),
    TensorType.Q5_K: Planes(_cut_q5_k, head=16, high=4),
    TensorType.Q6_K: Planes(_cut_q6_k, head=16, high=8, tail=2),
    TensorType.IQ4_XS: Planes(lambda b: Parts(b[:, 8:], head=b[:, :8]), head=8),
    TensorType.IQ4_NL: Planes(lambda b: Parts(b[:, 2:], tail=b[:, :2]), block_units=1, tail=2),
    TensorType.Q4_1: Planes(lambda b: Parts(b[:, 4:], tail=b[:, :4]), block_units=1, tail=4),
    TensorType.Q5_0: Planes(_cut_q5_0, block_units=1, high=4, tail=2),
    TensorType.Q5_1: Planes(_cut_q5_1, block_units=1, high=4, tail=4),
    TensorType.MXFP4: Planes(lambda b: Parts(b[:, 1:], tail=b[:, :1]), block_units=1, tail=1),
    TensorType.Q2_K: Planes(_cut_q2_k, level_bits=2, head=16, tail=4),
    TensorType.Q3_K: Planes(_cut_q3_k, level_bits=2, head=16, high=4),
    TensorType.TQ2_0: Planes(_cut_tq2_0, level_bits=2, tail=2),
    TensorType.TQ1_0: Planes(_cut_tq1_0, level_bits=2, tail=2),
}
"""Every type that is cut into planes."""
