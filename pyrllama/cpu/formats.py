"""The quantised types as the kernels hold them: what differs between them, stated once.

A packed block is that of 16 rows: first its head, the scales of all rows, then for every 32 of
its columns the levels of all rows, in vectors of 64 bytes with four bytes a row
(``PLACES`` says which bits stand where).  A level means ``values[level]``, and a number is
that times the scale of its run of columns, plus the run's addend where the head has one.

A head is what 16 heads of one row give when they are interleaved number by number.  Scales of
less than eight bits take whole bytes, but for the pairs of Q2_K: so memory holds 4.63 bits a
weight where a file of Q4_K has 4.5, which costs less than cutting six bits out of words.

This module is data alone and needs no Numba: a start that finds its machine code on disk reads
sizes here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pyrllama.cpu.records import BYTES, WIDE_BYTES
from pyrllama.quants.codebook import FACTORS, LEVELS
from pyrllama.quants.tables import E2M1, NON_LINEAR
from pyrllama.tensors import TensorType

ROWS = 16
"""Rows of a group."""
BLOCK = 32
"""Columns that the vectors of levels go by, and the activations' sums."""
SUPER_BLOCK = 256


class Bits(NamedTuple):
    """Neighbouring bits of the levels of four columns, in the bytes of a vector."""

    vector: int
    place: int
    """Of the lowest of them in the vector's bytes."""
    columns: int
    """Which four of 32."""
    lowest: int
    """The place of the lowest of them in the level."""
    width: int


def _whole(bits: int, vectors: int) -> tuple[Bits, ...]:
    """Return places for as many whole levels as fit into each of the first vectors."""
    at_once = 8 // bits
    return tuple(
        Bits(vector, bits * i, at_once * vector + i, 0, bits)
        for vector in range(vectors)
        for i in range(at_once)
    )


PLACES = {
    2: _whole(2, 2),
    3: (
        *_whole(3, 3),
        Bits(0, 6, 6, 0, 2), Bits(2, 6, 6, 2, 1), Bits(1, 6, 7, 0, 2), Bits(2, 7, 7, 2, 1),
    ),
    4: _whole(4, 4),
    5: (
        *(Bits(i, 0, 2 * i, 0, 5) for i in range(4)),
        *(Bits(i, 5, 2 * i + 1, 0, 3) for i in range(4)),
        *(Bits(4, 2 * i, 2 * i + 1, 3, 2) for i in range(4)),
    ),
    6: tuple(
        Bits(3 * run + i, *where)
        for run in range(2)
        for i in range(3)
        for where in ((0, 4 * run + i, 0, 6), (6, 4 * run + 3, 2 * i, 2))
    ),
    8: _whole(8, 8),
}  # fmt: skip
"""Where the levels of 32 columns stand, by their bits.

As many as possible stand whole, where a mask alone is needed or a shift as well; what these leave
of the bytes holds the others.  Runs of 16 columns of six bits share no vector.
"""


class Dot(enum.Enum):
    """How products of levels and activations are summed, see ``isa.py``."""

    UNSIGNED = "unsigned"
    """Values from -32 to 32 less the lowest one, summed in 16 bits."""
    SIGNED = "signed"
    """Values from -128 to 127."""
    SYMMETRIC = "symmetric"
    """Values from -127 to 127."""


class Head(enum.Enum):
    """What stands before a block's levels; fields of one row as (bytes, count)."""

    SCALE = "scale"
    """``d``: a float16."""
    SCALE_AND_ADDEND = "scale and addend"
    """``d`` and ``m``, which is added."""
    EXPONENT = "exponent"
    """``e`` of a scale ``2^(e - 128)``."""
    BYTES = "bytes"
    """``d`` and a signed byte ``s`` a run; the scale is ``d * s``."""
    NIBBLE_PAIRS = "nibble pairs"
    """``d``, ``dmin`` and ``s | m << 4`` a run: scale ``d * s``, addend ``-dmin * m``."""
    BYTE_PAIRS = "byte pairs"
    """``d``, ``dmin``, and of every run ``s``, then ``m``: as NIBBLE_PAIRS."""


_SIGNED_BYTES = tuple(range(-128, 128))


@dataclass(frozen=True)
class Format:
    """How 16 rows of a quantised type are held."""

    name: str
    """Of the kernels; types that differ only in the file share them."""
    bits: int
    """Of a level."""
    values: tuple[int, ...]
    """What each level means; those of 8 bits are signed bytes, which mean themselves."""
    columns: int
    """Of a packed block: 32, or 256 whose runs have scales of their own."""
    run: int
    """Columns with one scale, 16 or 32."""
    head: Head
    factor: float = 1.0
    """By which ``d`` is to be multiplied: values may be fractions of a power of two."""

    @property
    def runs(self) -> int:
        """Runs in 32 columns."""
        return BLOCK // self.run

    @property
    def n_runs(self) -> int:
        """Scales of a row of a packed block."""
        return self.columns // self.run if self.head in _SCALES_OF_RUNS else 1

    @property
    def blocks(self) -> int:
        """Blocks of 32 columns in a packed block."""
        return self.columns // BLOCK

    @cached_property
    def head_fields(self) -> tuple[tuple[int, int], ...]:
        """The numbers in the head of one row: their bytes and their count, in order."""
        n = self.n_runs
        match self.head:
            case Head.SCALE:
                return ((2, 1),)
            case Head.SCALE_AND_ADDEND:
                return ((2, 2),)
            case Head.EXPONENT:
                return ((1, 1),)
            case Head.BYTES:
                return ((2, 1), (1, n))
            case Head.NIBBLE_PAIRS:
                return ((2, 2), (1, n))
            case Head.BYTE_PAIRS:
                return ((2, 2), (1, 2 * n))

    @property
    def row_head_bytes(self) -> int:
        """Bytes of one row's head."""
        return sum(size * count for size, count in self.head_fields)

    @property
    def head_bytes(self) -> int:
        """Bytes of a packed block before its levels."""
        return ROWS * self.row_head_bytes

    @property
    def level_bytes(self) -> int:
        """Bytes of the levels of 16 rows and 32 columns."""
        return 64 * self.bits

    @property
    def bytes(self) -> int:
        """Bytes of a packed block."""
        return self.head_bytes + self.blocks * self.level_bytes

    @property
    def has_addend(self) -> bool:
        """Whether something is added to the products of scales and values."""
        return self.head in {Head.SCALE_AND_ADDEND, Head.NIBBLE_PAIRS, Head.BYTE_PAIRS}

    @property
    def has_minimums(self) -> bool:
        """Whether addends are whole numbers of runs, in units of the block's."""
        return self.has_addend and self.has_run_scales

    @property
    def shared_limit(self) -> int:
        """Up to which sum of magnitudes of 16 activations sums of a run surely fit 16 bits.

        Two of them may share a word then.  Zero for types of which it is too seldom so.
        """
        limit = (2**15 - 1) // self._most * 16 // self.run
        return limit if self.has_run_scales and limit >= _USUAL_MAGNITUDES else 0

    @property
    def form(self) -> int:
        """The form of activations that products read: their scales go by packed blocks."""
        return WIDE_BYTES if self.columns == SUPER_BLOCK else BYTES

    @property
    def has_run_scales(self) -> bool:
        """Whether runs have scales of whole numbers, in units of the block's."""
        return self.head in _SCALES_OF_RUNS

    @property
    def dot(self) -> Dot:
        """The dot product that holds the values."""
        if self._most <= _MOST_OF_16:
            return Dot.UNSIGNED
        return Dot.SYMMETRIC if min(self.values) > -128 else Dot.SIGNED

    @property
    def summed(self) -> int:
        """Columns whose products one integer sum takes, 16 or 32: 16 bits hold no more."""
        fits = self.is_signed or self._most <= _MOST_OF_32
        return min(self.run, BLOCK if fits else BLOCK // 2)

    @property
    def sections(self) -> int:
        """Integer sums of 32 columns."""
        return BLOCK // self.summed

    @property
    def n_addends(self) -> int:
        """Addends of a row of a packed block."""
        return self.columns // self.run if self.has_addend else 0

    @property
    def _most(self) -> int:
        return max(abs(value) for value in self.values)

    @property
    def is_signed(self) -> bool:
        """Whether products take the values as they are, as signed bytes."""
        return self.dot in {Dot.SIGNED, Dot.SYMMETRIC}

    @property
    def offset(self) -> int:
        """What unsigned products have too much: they multiply values less the lowest one."""
        return 0 if self.is_signed else -min(self.values)

    @property
    def table(self) -> tuple[int, ...]:
        """The operands of the dot product by level, or nothing where they are the levels."""
        operands = tuple(value + self.offset for value in self.values)
        direct = self.bits == 8 or operands == tuple(range(len(operands)))
        return () if direct else operands


# Half of the columns go to one of a lane's two 16-bit sums, each up to 127 times a value.
_MOST_OF_32, _MOST_OF_16 = ((2**15 - 1) // (columns // 2 * 127) for columns in (32, 16))
_USUAL_MAGNITUDES = 16 * 60
"""What 16 activations, the greatest of their super-block being 127, hardly ever exceed."""
_SCALES_OF_RUNS = {Head.BYTES, Head.NIBBLE_PAIRS, Head.BYTE_PAIRS}


def _values(low: int, count: int) -> tuple[int, ...]:
    return tuple(range(low, low + count))


_IQ4_VALUES = tuple(int(value) for value in NON_LINEAR)
_E2M1_VALUES = tuple(int(value) for value in E2M1)


def _codebook(name: str, type_: TensorType, run: int) -> Format:
    """Return the format of a codebook's numbers: whole levels, whose bits are fewest."""
    values = LEVELS[type_]
    bits = (len(values) - 1).bit_length()
    return Format(name, bits, values, SUPER_BLOCK, run, Head.BYTES, FACTORS[type_])


TQ2_0 = Format("tq2_0", 2, _values(-1, 4), 256, 32, Head.SCALE)
IQ2_XS = _codebook("iq2_xs", TensorType.IQ2_XS, 16)

FORMATS = {
    TensorType.Q8_0: Format("q8_0", 8, _SIGNED_BYTES, 32, 32, Head.SCALE),
    TensorType.Q4_0: Format("q4_0", 4, _values(-8, 16), 32, 32, Head.SCALE),
    TensorType.Q4_1: Format("q4_1", 4, _values(0, 16), 32, 32, Head.SCALE_AND_ADDEND),
    TensorType.Q5_0: Format("q5_0", 5, _values(-16, 32), 32, 32, Head.SCALE),
    TensorType.Q5_1: Format("q5_1", 5, _values(0, 32), 32, 32, Head.SCALE_AND_ADDEND),
    TensorType.Q2_K: Format("q2_k", 2, _values(0, 4), 256, 16, Head.NIBBLE_PAIRS),
    TensorType.Q3_K: Format("q3_k", 3, _values(-4, 8), 256, 16, Head.BYTES),
    TensorType.Q4_K: Format("q4_k", 4, _values(0, 16), 256, 32, Head.BYTE_PAIRS),
    TensorType.Q5_K: Format("q5_k", 5, _values(0, 32), 256, 32, Head.BYTE_PAIRS),
    TensorType.Q6_K: Format("q6_k", 6, _values(-32, 64), 256, 16, Head.BYTES),
    TensorType.IQ4_NL: Format("iq4_nl", 4, _IQ4_VALUES, 32, 32, Head.SCALE),
    TensorType.IQ4_XS: Format("iq4_xs", 4, _IQ4_VALUES, 256, 32, Head.BYTES),
    TensorType.MXFP4: Format("mxfp4", 4, _E2M1_VALUES, 32, 32, Head.EXPONENT),
    # Ternary digits, five a byte, would take longer to cut out than 2 bits take to arrive.
    TensorType.TQ1_0: TQ2_0,
    TensorType.TQ2_0: TQ2_0,
    TensorType.IQ1_S: _codebook("iq1_s", TensorType.IQ1_S, 32),
    TensorType.IQ1_M: _codebook("iq1_m", TensorType.IQ1_M, 16),
    TensorType.IQ2_XXS: _codebook("iq2_xxs", TensorType.IQ2_XXS, 32),
    TensorType.IQ2_XS: IQ2_XS,
    TensorType.IQ2_S: IQ2_XS,
    TensorType.IQ3_XXS: _codebook("iq3_xxs", TensorType.IQ3_XXS, 32),
    TensorType.IQ3_S: _codebook("iq3_s", TensorType.IQ3_S, 32),
}
"""Every quantised type that runs: what its numbers are in memory."""

_BY_NAME = {format_.name: format_ for format_ in FORMATS.values()}


def format_named(name: str) -> Format:
    """Return the format whose kernels have a name; raises ``AttributeError``, as for a module."""
    if name not in _BY_NAME:
        raise AttributeError(f"there is no kernel for a type {name!r}")
    return _BY_NAME[name]
