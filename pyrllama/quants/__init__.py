"""What the stored bits of a tensor mean: sizes of every type, packing and unpacking in NumPy.

One module a family of formats says how its blocks are laid out; this one knows the size of a
block of every type and takes whole rows through the family's functions, a cache-sized slice
at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.core import TensorType
from pyrllama.errors import SettingError
from pyrllama.quants import floats, legacy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SLICE_NUMBERS = 1 << 17
"""Numbers packed or unpacked at once: temporaries of that many stay in the cache."""


class _BlockSize(NamedTuple):
    """How many consecutive numbers of a row one block holds, in how many bytes."""

    numbers: int
    bytes: int


# The sizes of ggml's block structures (ggml-common.h), scales included.
_SIZES = {
    TensorType.F32: _BlockSize(1, 4),
    TensorType.F16: _BlockSize(1, 2),
    TensorType.BF16: _BlockSize(1, 2),
    TensorType.F64: _BlockSize(1, 8),
    TensorType.I8: _BlockSize(1, 1),
    TensorType.I16: _BlockSize(1, 2),
    TensorType.I32: _BlockSize(1, 4),
    TensorType.I64: _BlockSize(1, 8),
    TensorType.Q4_0: _BlockSize(32, 18),
    TensorType.Q4_1: _BlockSize(32, 20),
    TensorType.Q5_0: _BlockSize(32, 22),
    TensorType.Q5_1: _BlockSize(32, 24),
    TensorType.Q8_0: _BlockSize(32, 34),
    TensorType.Q8_1: _BlockSize(32, 36),
    TensorType.MXFP4: _BlockSize(32, 17),
    TensorType.IQ4_NL: _BlockSize(32, 18),
    TensorType.Q2_K: _BlockSize(256, 84),
    TensorType.Q3_K: _BlockSize(256, 110),
    TensorType.Q4_K: _BlockSize(256, 144),
    TensorType.Q5_K: _BlockSize(256, 176),
    TensorType.Q6_K: _BlockSize(256, 210),
    TensorType.Q8_K: _BlockSize(256, 292),
    TensorType.IQ1_S: _BlockSize(256, 50),
    TensorType.IQ1_M: _BlockSize(256, 56),
    TensorType.IQ2_XXS: _BlockSize(256, 66),
    TensorType.IQ2_XS: _BlockSize(256, 74),
    TensorType.IQ2_S: _BlockSize(256, 82),
    TensorType.IQ3_XXS: _BlockSize(256, 98),
    TensorType.IQ3_S: _BlockSize(256, 110),
    TensorType.IQ4_XS: _BlockSize(256, 136),
    TensorType.TQ1_0: _BlockSize(256, 54),
    TensorType.TQ2_0: _BlockSize(256, 66),
}


class _Codec(NamedTuple):
    """Blocks ``(n, bytes)`` uint8 to numbers ``(n, numbers)`` float32 and back."""

    unpack: Callable[[NDArray[np.uint8], NDArray[np.float32]], None]
    pack: Callable[[NDArray[np.float32], NDArray[np.uint8]], None]


_CODECS = {
    TensorType.F32: _Codec(floats.unpack_f32, floats.pack_f32),
    TensorType.F16: _Codec(floats.unpack_f16, floats.pack_f16),
    TensorType.BF16: _Codec(floats.unpack_bf16, floats.pack_bf16),
    TensorType.Q8_0: _Codec(legacy.unpack_q8_0, legacy.pack_q8_0),
    TensorType.Q4_0: _Codec(legacy.unpack_q4_0, legacy.pack_q4_0),
}

RUNNABLE = frozenset(_CODECS)
"""The types that the program computes with."""


def runnable_names() -> str:
    """Return the types that run, for an error message: ``"F32, F16, Q4_0"``."""
    return ", ".join(type_.name for type_ in sorted(RUNNABLE))


def block_size(type_: TensorType) -> int:
    """Return how many consecutive numbers of a row one block holds."""
    return _SIZES[type_].numbers


def type_size(type_: TensorType) -> int:
    """Return how many bytes one block takes."""
    return _SIZES[type_].bytes


def row_bytes(type_: TensorType, cols: int) -> int:
    """Return how many bytes a row of ``cols`` numbers takes.

    Raises ``SettingError`` when a row is not a whole number of blocks.
    """
    size = _SIZES[type_]
    if cols % size.numbers:
        raise SettingError("the row length", cols, f"a multiple of {type_.name}'s {size.numbers}")
    return cols // size.numbers * size.bytes


def dequantize(type_: TensorType, data: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    """Return the numbers, ``(rows, cols)``, that stored rows, ``(rows, row_bytes)``, stand for.

    The result is a new array.  Raises ``SettingError`` for a type that does not run yet.
    """
    codec = _codec(type_)
    size = _SIZES[type_]
    if data.ndim != 2 or data.shape[1] != row_bytes(type_, cols):
        raise ValueError(f"rows of {cols} {type_.name} numbers cannot have shape {data.shape}")
    out = np.empty((data.shape[0], cols), dtype=np.float32)
    blocks, numbers = data.reshape(-1, size.bytes), out.reshape(-1, size.numbers)
    # A damaged scale may be infinite or NaN; so are its numbers then, without a warning.
    with np.errstate(all="ignore"):
        for part in _slices(len(blocks), size):
            codec.unpack(blocks[part], numbers[part])
    return out


def quantize(type_: TensorType, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return rows of numbers, ``(rows, cols)``, as stored rows, ``(rows, row_bytes)``.

    Numbers beyond the type's range become infinite, or their block's scale does.  Raises
    ``SettingError`` for a type that does not run yet or rows that are not whole blocks.
    """
    codec = _codec(type_)
    size = _SIZES[type_]
    rows, cols = x.shape
    out = np.empty((rows, row_bytes(type_, cols)), dtype=np.uint8)
    numbers = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, size.numbers)
    blocks = out.reshape(-1, size.bytes)
    with np.errstate(all="ignore"):
        for part in _slices(len(blocks), size):
            codec.pack(numbers[part], blocks[part])
    return out


def _codec(type_: TensorType) -> _Codec:
    if type_ not in _CODECS:
        raise SettingError("the tensor type", type_.name, f"one of {runnable_names()}")
    return _CODECS[type_]


def _slices(n_blocks: int, size: _BlockSize) -> list[slice]:
    step = _SLICE_NUMBERS // size.numbers
    return [slice(start, start + step) for start in range(0, n_blocks, step)]
