"""A second, slow statement of the layout that ``pyrllama.cpu.formats`` documents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.kernels import QUANTISED, with_scales_of_one

from pyrllama import quants
from pyrllama.cpu.formats import FORMATS
from pyrllama.cpu.scratch import round_up
from pyrllama.quants import codebook, kquants
from pyrllama.quants.bits import split
from pyrllama.tensors import TensorType

Bytes = NDArray[np.uint8]


def interleaved(stored: Bytes, kind: TensorType, cols: int) -> Bytes:
    """State the layout: stored rows to ``(groups, bytes of a group)``, piece by piece."""
    groups = blocks_of_groups if kind in QUANTISED else floats_of_groups
    return groups(stored, kind, cols)


def floats_of_groups(stored: Bytes, kind: TensorType, cols: int) -> Bytes:
    """Return the groups of a float type: columns one after the other, 16 rows each."""
    size = stored.shape[1] // cols
    rows, columns = round_up(len(stored), 16), round_up(cols, 32)
    padded = np.zeros((rows, columns, size), np.uint8)
    padded[: len(stored), :cols] = stored.reshape(len(stored), cols, size)
    groups = padded.reshape(-1, 16, columns, size).transpose(0, 2, 1, 3)
    return groups.reshape(len(groups), -1)


def blocks_of_groups(stored: Bytes, kind: TensorType, cols: int) -> Bytes:
    """Return the groups of a quantised type, block by block and piece by piece."""
    held = FORMATS[kind]
    plain = as_plain(stored, kind)
    padded = np.zeros((round_up(len(stored), 16), cols // held.columns), plain.dtype)
    padded[: len(stored)] = plain
    groups = []
    for rows in padded.reshape(-1, 16, padded.shape[1]):
        pieces: list[Bytes] = []
        for block in rows.T:  # 16 rows of a block
            for field in (plain.dtype.names or ())[:-1]:
                numbers = block[field].reshape(16, -1)
                pieces += [np.ascontiguousarray(n).view(np.uint8) for n in numbers.T]
            for first in range(0, held.columns, 32):
                pieces += vectors_of(block["levels"][:, first : first + 32], held.bits)
        groups.append(np.concatenate(pieces))
    return np.array(groups)


# Which bits of which four columns each vector of a block holds, from the lowest: (columns, bit).
_THREE = [[(2 * v + i // 3, i % 3) for i in range(6)] for v in range(3)]
_FIVE = [[(2 * v + i // 5, i % 5) for i in range(8)] for v in range(4)]
_SIX = [[(v + v // 3, i) for i in range(6)] for v in range(6)]
VECTORS = {
    2: [[(4 * v + i // 2, i % 2) for i in range(8)] for v in range(2)],
    3: [
        _THREE[0] + [(6, 0), (6, 1)],
        _THREE[1] + [(7, 0), (7, 1)],
        _THREE[2] + [(6, 2), (7, 2)],
    ],
    4: [[(2 * v + i // 4, i % 4) for i in range(8)] for v in range(4)],
    5: [*_FIVE, [(2 * (i // 2) + 1, 3 + i % 2) for i in range(8)]],
    6: [_SIX[v] + [(3 + 4 * (v // 3), v % 3 * 2 + i) for i in range(2)] for v in range(6)],
    8: [[(v, i) for i in range(8)] for v in range(8)],
}


def vectors_of(levels: Bytes, bits: int) -> list[Bytes]:
    """Return the vectors of a block's levels, ``(16, 32)``."""
    of_four = levels.reshape(16, 8, 4).transpose(1, 0, 2).reshape(8, 64)  # (8, 64): four columns
    return [
        np.bitwise_or.reduce(
            [
                (of_four[c] >> np.uint8(bit) & np.uint8(1)) << np.uint8(i)
                for i, (c, bit) in enumerate(v)
            ]
        )
        for v in VECTORS[bits]
    ]


def as_plain(stored: Bytes, kind: TensorType) -> NDArray[Any]:
    """Return blocks, ``(rows, blocks)``, as records of a head's fields and ``levels``."""
    blocks = stored.reshape(-1, quants.type_size(kind))
    head = head_of(blocks, kind)
    levels = levels_of(blocks, kind)
    names = [f"head {i}" for i in range(len(head))]
    plain: NDArray[Any] = np.empty(
        len(blocks),
        [(name, h.dtype, h.shape[1:]) for name, h in zip(names, head, strict=True)]
        + [("levels", np.uint8, levels.shape[1:])],
    )
    for name, values in zip(names, head, strict=True):
        plain[name] = values
    plain["levels"] = levels
    return plain.reshape(len(stored), -1)


def levels_of(blocks: Bytes, kind: TensorType) -> Bytes:
    """Return the levels of stored blocks, ``(n, columns)``, by their numbers with scales of 1."""
    if kind in codebook.LEVELS:
        return codebook.as_levels(kind, blocks)[:, -256:]
    if kind is TensorType.Q8_0:
        return blocks[:, 2:]
    held = FORMATS[kind]
    numbers = quants.dequantize(kind, plain_scales(blocks, kind), held.columns)
    place = {value: level for level, value in reversed(list(enumerate(held.values)))}
    if kind is TensorType.MXFP4:  # minus zero is a level of its own, and a number that is zero
        return np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    return np.array([place[int(x)] for x in numbers.flat], np.uint8).reshape(numbers.shape)


def plain_scales(blocks: Bytes, kind: TensorType) -> Bytes:
    """Return blocks with all scales 1 and all minimums 0."""
    plain = with_scales_of_one(blocks, kind)
    match kind:
        case TensorType.Q4_1 | TensorType.Q5_1:
            plain[:, 2:4] = 0
        case TensorType.Q2_K:
            plain[:, :16] = 1
        case TensorType.Q4_K | TensorType.Q5_K:
            plain[:, 4:16] = [1] * 4 + [0] * 4 + [1] * 4
        case TensorType.Q3_K:  # 33 less 32
            plain[:, 96:108] = [0x11] * 8 + [0xAA] * 4
        case TensorType.Q6_K:
            plain[:, 192:208] = 1
        case TensorType.IQ4_XS:
            plain[:, 2:8] = [0xAA] * 2 + [0x11] * 4
        case TensorType.IQ2_XS | TensorType.IQ2_S:
            plain[:, -8:] = 0
        case TensorType.IQ3_S:
            plain[:, -4:] = 0
        case TensorType.IQ2_XXS:  # the highest four bits of every second word
            plain[:, 9::8] &= 0x0F
        case TensorType.IQ3_XXS:
            plain[:, 69::4] &= 0x0F
    return plain


def halves(blocks: Bytes, *places: int) -> list[NDArray[Any]]:
    """Return the 16 bits at each of some bytes."""
    return [blocks[:, place : place + 2].copy().view("<u2") for place in places]


def head_of(blocks: Bytes, kind: TensorType) -> list[NDArray[Any]]:
    """Return the fields of the heads of stored blocks, number by number."""
    match kind:
        case TensorType.Q4_1 | TensorType.Q5_1:
            return halves(blocks, 0, 2)
        case TensorType.MXFP4:
            return [blocks[:, :1]]
        case TensorType.Q2_K:
            return [*halves(blocks, 80, 82), blocks[:, :16]]
        case TensorType.Q4_K | TensorType.Q5_K:
            scales, minimums = kquants.six_bit_pairs(blocks[:, 4:16])
            pairs = np.stack([scales, minimums], axis=2).reshape(-1, 16)
            return [*halves(blocks, 0, 2), pairs]
        case TensorType.Q3_K:
            low = split(blocks[:, 96:104], 4, 8)
            high = split(blocks[:, 104:108], 2, 4)
            return [*halves(blocks, 108), (low | high << np.uint8(4)) - np.uint8(32)]
        case TensorType.Q6_K:
            return [*halves(blocks, 208), blocks[:, 192:208]]
        case TensorType.IQ4_XS:
            low, high = split(blocks[:, 4:8], 4, 1), split(blocks[:, 2:4], 2, 1)
            return [*halves(blocks, 0), (low | high << np.uint8(4)) - np.uint8(32)]
        case TensorType.TQ1_0:
            return halves(blocks, 52)
        case TensorType.TQ2_0:
            return halves(blocks, 64)
        case _ if kind in codebook.LEVELS:
            plain = codebook.as_levels(kind, blocks)
            return [plain[:, :2].copy().view("<u2"), plain[:, 2:-256]]
        case _:
            return halves(blocks, 0)
