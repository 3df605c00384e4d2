"""What the stored bits of a tensor mean: sizes of every type, packing and unpacking in NumPy.

One module a family of formats says how its blocks are laid out; this one knows the size of a
block of every type and takes whole rows through the family's functions, a cache-sized slice
at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.errors import SettingError
from pyrllama.quants import codebook, floats, kquants, legacy, tables, ternary
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

_SLICE_NUMBERS = 1 << 17
"""Numbers packed or unpacked at once: temporaries of that many stay in the cache."""
_FITTED_NUMBERS = 31 * 1024
"""Numbers fitted at once: a power of two would put the rows of the temporaries into the same
few sets of the cache."""


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
    """Blocks ``(n, bytes)`` uint8 to numbers ``(n, numbers)`` float32 and back.

    ``pack`` rounds by a plain rule; ``fit`` takes weights of the squared errors, too, and
    searches for the scales that leave the least.
    """

    unpack: Callable[[NDArray[np.uint8], NDArray[np.float32]], None]
    pack: Callable[[NDArray[np.float32], NDArray[np.uint8]], None] | None = None
    fit: (
        Callable[[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.uint8]], None] | None
    ) = None


_CODECS = {
    TensorType.F32: _Codec(floats.unpack_f32, floats.pack_f32),
    TensorType.F16: _Codec(floats.unpack_f16, floats.pack_f16),
    TensorType.BF16: _Codec(floats.unpack_bf16, floats.pack_bf16),
    TensorType.Q4_0: _Codec(legacy.unpack_q4_0, legacy.pack_q4_0, legacy.fit_q4_0),
    TensorType.Q4_1: _Codec(legacy.unpack_q4_1, fit=legacy.fit_q4_1),
    TensorType.Q5_0: _Codec(legacy.unpack_q5_0, fit=legacy.fit_q5_0),
    TensorType.Q5_1: _Codec(legacy.unpack_q5_1, fit=legacy.fit_q5_1),
    TensorType.Q8_0: _Codec(legacy.unpack_q8_0, legacy.pack_q8_0, legacy.fit_q8_0),
    TensorType.Q2_K: _Codec(kquants.unpack_q2_k, fit=kquants.fit_q2_k),
    TensorType.Q3_K: _Codec(kquants.unpack_q3_k, fit=kquants.fit_q3_k),
    TensorType.Q4_K: _Codec(kquants.unpack_q4_k, fit=kquants.fit_q4_k),
    TensorType.Q5_K: _Codec(kquants.unpack_q5_k, fit=kquants.fit_q5_k),
    TensorType.Q6_K: _Codec(kquants.unpack_q6_k, fit=kquants.fit_q6_k),
    TensorType.IQ4_NL: _Codec(tables.unpack_iq4_nl, fit=tables.fit_iq4_nl),
    TensorType.IQ4_XS: _Codec(tables.unpack_iq4_xs, fit=tables.fit_iq4_xs),
    TensorType.MXFP4: _Codec(tables.unpack_mxfp4, fit=tables.fit_mxfp4),
    TensorType.TQ1_0: _Codec(ternary.unpack_tq1_0, fit=ternary.fit_tq1_0),
    TensorType.TQ2_0: _Codec(ternary.unpack_tq2_0, fit=ternary.fit_tq2_0),
    **{type_: _Codec(codebook.unpacker(type_)) for type_ in codebook.LEVELS},
}

READABLE = frozenset(_CODECS)
"""The types whose numbers can be had, so that they can be converted to others."""
RUNNABLE = READABLE
"""The types that the compiled kernels compute with."""
WRITABLE = frozenset(type_ for type_, codec in _CODECS.items() if codec.pack or codec.fit)
"""The types that numbers can be stored as; the codebooks of IQ1 to IQ3 are only read."""


def runnable_names() -> str:
    """Return the types that run, for an error message: ``"F32, F16, Q4_0"``."""
    return names_of(RUNNABLE)


def names_of(types: Iterable[TensorType]) -> str:
    """Return types for an error message, in the order of their codes."""
    return ", ".join(type_.name for type_ in sorted(types))


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

    The result is a new array.  Raises ``SettingError`` for a type that is not ``READABLE``.
    """
    codec = _codec(type_, READABLE)
    size = _SIZES[type_]
    if data.ndim != 2 or data.shape[1] != row_bytes(type_, cols):
        raise ValueError(f"rows of {cols} {type_.name} numbers cannot have shape {data.shape}")
    out = np.empty((data.shape[0], cols), dtype=np.float32)
    blocks, numbers = data.reshape(-1, size.bytes), out.reshape(-1, size.numbers)
    # A damaged scale may be infinite or NaN; so are its numbers then, without a warning.
    with np.errstate(all="ignore"):
        for part in _slices(len(blocks), _SLICE_NUMBERS // size.numbers):
            codec.unpack(blocks[part], numbers[part])
    return out


def quantize(type_: TensorType, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return rows of numbers, ``(rows, cols)``, as stored rows, ``(rows, row_bytes)``.

    The plain rule of the type is taken where it has one, as the kernels do when they convert;
    ``quantize_fitted`` searches for better scales.  Numbers beyond the type's range become
    infinite, or their block's scale does.  Raises ``SettingError`` for a type that is not
    ``WRITABLE`` or rows that are not whole blocks.
    """
    pack = _codec(type_, WRITABLE).pack
    if pack is None:
        return quantize_fitted(type_, x)
    size = _SIZES[type_]
    rows, cols = x.shape
    out = np.empty((rows, row_bytes(type_, cols)), dtype=np.uint8)
    numbers = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, size.numbers)
    blocks = out.reshape(-1, size.bytes)
    with np.errstate(all="ignore"):
        for part in _slices(len(blocks), _SLICE_NUMBERS // size.numbers):
            pack(numbers[part], blocks[part])
    return out


def quantize_fitted(
    type_: TensorType, x: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Return rows as ``quantize`` does, with the scales that leave the least squared error.

    Errors count by ``importance``, ``(cols,)``, of their column, and by the magnitude of the
    number.  All numbers must be finite.  Types without scales are rounded as by ``quantize``.
    """
    fit = _codec(type_, WRITABLE).fit
    if fit is None:
        return quantize(type_, x)
    size = _SIZES[type_]
    rows, cols = x.shape
    out = np.empty((rows, row_bytes(type_, cols)), dtype=np.uint8)
    numbers = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, size.numbers)
    blocks = out.reshape(-1, size.bytes)
    columns = None if importance is None else importance.reshape(-1, size.numbers)
    with np.errstate(all="ignore"):
        for part in _slices(len(blocks), _FITTED_NUMBERS // size.numbers):
            weights = _weights(numbers[part])
            if columns is not None:
                of_row = np.arange(part.start, part.start + len(weights)) % len(columns)
                weights *= columns[of_row]
            fit(numbers[part], weights, blocks[part])
    return out


def _weights(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much the squared error of each number counts: its magnitude over a floor.

    The floor is the block's root mean square.  Measured by what a model computes, this is
    better than counting all errors alike: large weights matter more than by their number.
    """
    weights = np.abs(x)
    weights += np.sqrt(np.einsum("ij,ij->i", x, x) / np.float32(x.shape[1]))[:, None]
    return weights


def _codec(type_: TensorType, allowed: frozenset[TensorType]) -> _Codec:
    if type_ not in allowed:
        raise SettingError("the tensor type", type_.name, f"one of {names_of(allowed)}")
    return _CODECS[type_]


def _slices(n_blocks: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, n_blocks, step)]
