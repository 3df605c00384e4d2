"""Quantised blocks cut into planes, so that a device's loads of each are neighbours in memory.

The 32 columns of a unit are four or two bits of each; what else a block has lies beside the units,
for every row in planes one behind the other.  In bytes of

======  ====  ==================  ===================================  ======================
type    unit  high bits a unit    scales a unit                        rest a block
======  ====  ==================  ===================================  ======================
Q4_K    16    -                   1.5: scale, minimum                  4: d, dmin
Q5_K    16    4                   1.5: scale, minimum                  4: d, dmin
Q6_K    16    8                   2: scales of 16 columns              2: d
IQ4_XS  16    -                   -                                    8: as in the file
IQ4_NL  16    -                   -                                    2: d
Q4_1    16    -                   -                                    4: d, m
Q5_0    16    4                   -                                    2: d
Q5_1    16    4                   -                                    4: d, m
MXFP4   16    -                   -                                    1: exponent
Q2_K    8     -                   2: scales, minimums of 16 columns    4: d, dmin
Q3_K    8     4                   1.5: scales of 16 columns            2: d
TQ2_0   8     -                   -                                    2: d
TQ1_0   8     -                   -                                    2: d
======  ====  ==================  ===================================  ======================

Blocks have 256 columns, those of IQ4_NL to MXFP4 32.  Two numbers of 6 bits are a byte, the lower
8 bits, and a nibble in a plane behind the bytes'.

No bit is lost or made, so that the numbers are the file's; only their places are others.  TQ1_0
alone is spelled anew: its ternary digits, five a byte in the file, take two bits each, as TQ2_0's
do.  ``pyrllama.quants`` says what all mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.quants import dequantize
from pyrllama.quants.bits import join, split
from pyrllama.quants.kquants import six_bit_pairs
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

UNIT_COLS = 32
SIDE_ALIGNMENT = 16
"""Bytes to which what stands beside a row is padded: the longest load of it."""
SIX_BIT_PAIR = 12
"""Bits of a unit's scales that lie in two planes, of bytes and of nibbles."""
_HALF_UNIT = 16
_FOURS = 4
"""Neighbouring columns whose bits of one plane are in the bytes of a word."""
_2, _4, _6 = np.uint8(2), np.uint8(4), np.uint8(6)


class Parts(NamedTuple):
    """Blocks in pieces, each ``(blocks, bytes)``, in the order of their planes."""

    units: Bytes
    rest: Bytes
    high: Bytes | None = None
    scales: Bytes | None = None
    """Two numbers of 6 bits for each unit have a byte each here."""


@dataclass(frozen=True, slots=True)
class Planes:
    """How a type is cut."""

    cut: Callable[[Bytes], Parts]
    rest_bytes: int
    """Of a block."""
    level_bits: int = 4
    """Bits of a level that stand in the units."""
    high_bits: int = 0
    """Bits of a level that stand in a plane of their own."""
    scale_bits: int = 0
    """Of a unit, in planes of their own."""
    block_units: int = 8

    @property
    def defines(self) -> Mapping[str, int]:
        """What the kernels of the type are built with."""
        return {
            "PLANES": 1,
            "LEVEL_BITS": self.level_bits,
            "HIGH_BITS": self.high_bits,
            "SCALE_BITS": self.scale_bits,
            "REST_BYTES": self.rest_bytes,
            "BLOCK_UNITS": self.block_units,
        }

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit."""
        return UNIT_COLS * self.level_bits // 8

    def side_bytes(self, n_units: int) -> int:
        """Return the bytes beside a row of so many units."""
        bits = n_units * (UNIT_COLS * self.high_bits + self.scale_bits)
        used = bits // 8 + n_units // self.block_units * self.rest_bytes
        return -(-used // SIDE_ALIGNMENT) * SIDE_ALIGNMENT

    def pack(self, blocks: Bytes, n_rows: int) -> tuple[Bytes, Bytes]:
        """Return the units of whole rows of blocks, and what stands beside them, row by row."""
        parts = self.cut(blocks)
        units = np.ascontiguousarray(parts.units).reshape(n_rows, -1)
        planes = [parts.high, parts.rest]
        if parts.scales is not None and self.scale_bits == SIX_BIT_PAIR:
            planes += _six_bit_planes(parts.scales.reshape(n_rows, -1, 2))
        else:
            planes.insert(1, parts.scales)
        rows = [plane.reshape(n_rows, -1) for plane in planes if plane is not None]
        side = np.zeros((n_rows, self.side_bytes(units.shape[1] // self.unit_bytes)), np.uint8)
        np.concatenate(rows, axis=1, out=side[:, : sum(row.shape[1] for row in rows)])
        return units, side


def _six_bit_planes(pairs: Bytes) -> list[Bytes]:
    """Return pairs, ``(rows, units, 2)``, as their lower 8 bits and, two in a byte, the rest."""
    first, second = pairs[..., 0], pairs[..., 1]
    return [first | second << _6, join(second >> _2, 4, 1)]


def _nibbles(levels: Bytes) -> Bytes:
    """Return four bits of each column: of a byte's, the low ones 16 columns before the high."""
    return join(levels, 4, _HALF_UNIT)


def _bit_pairs(levels: Bytes) -> Bytes:
    """Return two bits of each column: a byte has those of four columns that are 4 apart."""
    return join(levels, 2, _FOURS)


def _single_bits(levels: Bytes) -> Bytes:
    """Return one bit of each column: a byte has those of eight columns that are 4 apart."""
    return join(levels, 1, _FOURS)


def _affine_scales(packed: Bytes) -> Bytes:
    """Return scale and minimum of each of eight units, in turn, from Q4_K's twelve bytes."""
    scales, mins = six_bit_pairs(packed)
    return np.stack([scales, mins], axis=-1).reshape(len(packed), -1)


def _cut_q4_k(blocks: Bytes) -> Parts:
    units = _nibbles(split(blocks[:, 16:], 4, 32))
    return Parts(units, blocks[:, :4], scales=_affine_scales(blocks[:, 4:16]))


def _cut_q5_k(blocks: Bytes) -> Parts:
    high = _single_bits(split(blocks[:, 16:48], 1, 32))
    units = _nibbles(split(blocks[:, 48:], 4, 32))
    return Parts(units, blocks[:, :4], high, _affine_scales(blocks[:, 4:16]))


def _cut_q6_k(blocks: Bytes) -> Parts:
    high = _bit_pairs(split(blocks[:, 128:192], 2, 32))
    units = _nibbles(split(blocks[:, :128], 4, 64))
    return Parts(units, blocks[:, 208:], high, blocks[:, 192:208])


def _cut_q5_0(blocks: Bytes) -> Parts:
    return Parts(blocks[:, 6:], blocks[:, :2], _single_bits(split(blocks[:, 2:6], 1, 1)))


def _cut_q5_1(blocks: Bytes) -> Parts:
    return Parts(blocks[:, 8:], blocks[:, :4], _single_bits(split(blocks[:, 4:8], 1, 1)))


def _cut_q2_k(blocks: Bytes) -> Parts:
    units = _bit_pairs(split(blocks[:, 16:80], 2, 32))
    return Parts(units, blocks[:, 80:], scales=blocks[:, :16])


def _cut_q3_k(blocks: Bytes) -> Parts:
    high = _single_bits(split(blocks[:, :32], 1, 32))
    units = _bit_pairs(split(blocks[:, 32:96], 2, 32))
    scales = split(blocks[:, 96:104], 4, 8) | split(blocks[:, 104:108], 2, 4) << _4
    return Parts(units, blocks[:, 108:], high, scales)


def _cut_tq2_0(blocks: Bytes) -> Parts:
    return Parts(_bit_pairs(split(blocks[:, :64], 2, 32)), blocks[:, 64:])


def _cut_tq1_0(blocks: Bytes) -> Parts:
    ones = blocks.copy()
    ones[:, 52:].view("<f2")[:] = 1  # in the place of d, so that digits come out
    digits = dequantize(TensorType.TQ1_0, ones, 256) + 1
    return Parts(_bit_pairs(digits.astype(np.uint8)), blocks[:, 52:])


PLANES = {
    TensorType.Q4_K: Planes(_cut_q4_k, 4, scale_bits=SIX_BIT_PAIR),
    TensorType.Q5_K: Planes(_cut_q5_k, 4, high_bits=1, scale_bits=SIX_BIT_PAIR),
    TensorType.Q6_K: Planes(_cut_q6_k, 2, high_bits=2, scale_bits=16),
    TensorType.IQ4_XS: Planes(lambda b: Parts(b[:, 8:], b[:, :8]), 8),
    TensorType.IQ4_NL: Planes(lambda b: Parts(b[:, 2:], b[:, :2]), 2, block_units=1),
    TensorType.Q4_1: Planes(lambda b: Parts(b[:, 4:], b[:, :4]), 4, block_units=1),
    TensorType.Q5_0: Planes(_cut_q5_0, 2, high_bits=1, block_units=1),
    TensorType.Q5_1: Planes(_cut_q5_1, 4, high_bits=1, block_units=1),
    TensorType.MXFP4: Planes(lambda b: Parts(b[:, 1:], b[:, :1]), 1, block_units=1),
    TensorType.Q2_K: Planes(_cut_q2_k, 4, level_bits=2, scale_bits=16),
    TensorType.Q3_K: Planes(_cut_q3_k, 2, level_bits=2, high_bits=1, scale_bits=SIX_BIT_PAIR),
    TensorType.TQ2_0: Planes(_cut_tq2_0, 2, level_bits=2),
    TensorType.TQ1_0: Planes(_cut_tq1_0, 2, level_bits=2),
}
"""Every type that is cut into planes."""
