"""Writing GGUF 3: metadata and a tensor directory at once, then tensor by tensor.

The file grows under a temporary name beside its own and takes that only when it is whole, so
that nobody ever meets half a model.  ``gguf_file`` shows the layout.

Source: the GGUF specification in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyrllama.checkpoints.gguf_file import DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_DIMS
from pyrllama.checkpoints.gguf_metadata import NUMBERS, StringArray, ValueType
from pyrllama.checkpoints.replacing import replacing
from pyrllama.errors import SettingError
from pyrllama.quants import row_bytes

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from pyrllama.tensors import TensorInfo

VERSION = 3
MAX_TENSOR_NAME = 63
"""Bytes of a tensor's name that ggml has room for."""

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

Parts = Callable[[], Iterable["NDArray[np.uint8]"]]


class PendingTensor(NamedTuple):
    """A tensor that is to be written: what it is, and how to get its bytes.

    ``parts`` is called when its turn comes and yields the stored bytes in order, in pieces of
    any size, so that no more than a piece need be in memory.
    """

    info: TensorInfo
    parts: Parts


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[PendingTensor]) -> None:
    """Write a GGUF 3 file; one that was there is replaced when the new one is whole.

    A metadata value is text, a truth value, a number, or an array: a NumPy array, or a sequence
    of values of one type.  NumPy's numbers and arrays keep their type; plain whole numbers
    become ``UINT32`` or the first wider or signed type that holds them, other plain numbers
    ``FLOAT32``, or ``FLOAT64`` where they are too large for it.  ``general.alignment`` among the
    keys sets the alignment of the tensors.

    Raises ``SettingError`` for what GGUF cannot express, and ``CheckpointError`` when the file
    cannot be written; nothing is left behind then.
    """
    alignment = _alignment(metadata)
    head = _head(metadata, [tensor.info for tensor in tensors], alignment)
    with replacing(path) as file:
        file.write(head)
        _pad(file, alignment)
        for tensor in tensors:
            start = file.tell()
            for part in tensor.parts():
                file.write(np.ascontiguousarray(part).data)
            if file.tell() - start != stored_bytes(tensor.info):
                raise ValueError(
                    f"{tensor.info} has {stored_bytes(tensor.info)} bytes, but its parts have "
                    f"{file.tell() - start}"
                )
            _pad(file, alignment)


def stored_bytes(info: TensorInfo) -> int:
    """Return how many bytes a tensor takes, its padding apart."""
    return math.prod(info.shape[:-1]) * row_bytes(info.type, info.shape[-1])


def _head(metadata: Mapping[str, Any], infos: Sequence[TensorInfo], alignment: int) -> bytes:
    """Return everything before the padding and the tensor data."""
    counts = struct.pack("<IQQ", VERSION, len(infos), len(metadata))
    parts = [MAGIC, counts]
    for key, value in metadata.items():
        parts += [_string(key), _typed(value, key)]
    names: set[str] = set()
    offset = 0
    for info in infos:
        _check_info(info, names)
        names.add(info.name)
        dims = info.shape[::-1]
        parts.append(_string(info.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, info.type, offset))
        offset += -(-stored_bytes(info) // alignment) * alignment
    return b"".join(parts)


def _check_info(info: TensorInfo, others: set[str]) -> None:
    name, shape = info.name, info.shape
    if not 0 < len(name.encode()) <= MAX_TENSOR_NAME or not name.isprintable() or name in others:
        raise SettingError(
            "a tensor's name", name, f"printable, used once, and of at most {MAX_TENSOR_NAME} bytes"
        )
    if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1:
        raise SettingError(
            f"the shape of {name}", shape, f"1 to {MAX_DIMS} sizes that are at least 1"
        )


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment.bit_count() != 1:
        raise SettingError("general.alignment", alignment, f"a power of two up to {MAX_ALIGNMENT}")
    return alignment


def _typed(value: Any, key: str) -> bytes:
    """Return a value behind the code of its type."""
    type_ = _value_type(value, key)
    return struct.pack("<I", type_) + _encode(value, type_, key)


def _encode(value: Any, type_: ValueType, key: str) -> bytes:
    if type_ is ValueType.STRING:
        return _string(value)
    if type_ is ValueType.ARRAY:
        return _array(value, key)
    return np.asarray(value).astype(NUMBERS[type_]).tobytes()


def _array(values: Any, key: str) -> bytes:
    """Return the items' type, their number, and the items."""
    if isinstance(values, np.ndarray):
        type_ = _number_type(values.dtype, key)
        return _array_head(type_, len(values)) + values.astype(NUMBERS[type_]).tobytes()
    if isinstance(values, StringArray):  # its bytes pass as they are, also where not UTF-8
        strings = b"".join(_string(raw) for raw in values.raws())
        return _array_head(ValueType.STRING, len(values)) + strings
    types = {_value_type(item, key) for item in values}
    if len(types) != 1:
        raise SettingError(
            key, type(values), "an array of one type of values; an empty one must be NumPy's"
        )
    (type_,) = types
    return _array_head(type_, len(values)) + b"".join(_encode(v, type_, key) for v in values)


def _array_head(type_: ValueType, count: int) -> bytes:
    return struct.pack("<IQ", type_, count)


def _value_type(value: Any, key: str) -> ValueType:
    match value:
        case str():
            return ValueType.STRING
        case bool():
            return ValueType.BOOL
        case int():
            return _integer_type(value, key)
        case np.generic():  # before float, which NumPy's float64 is as well
            return _number_type(value.dtype, key)
        case float():
            beyond = math.isfinite(value) and abs(value) > _LARGEST_FLOAT32
            return ValueType.FLOAT64 if beyond else ValueType.FLOAT32
        case np.ndarray() if value.ndim == 1:
            return ValueType.ARRAY
        case Sequence() if not isinstance(value, bytes | bytearray):
            return ValueType.ARRAY
    raise SettingError(
        key, type(value), "text, a number, a truth value or a flat array of one of these"
    )


def _integer_type(value: int, key: str) -> ValueType:
    for type_ in (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64):
        limits = np.iinfo(NUMBERS[type_])
        if limits.min <= value <= limits.max:
            return type_
    raise SettingError(key, value, "a whole number of at most 64 bits")


def _number_type(dtype: np.dtype[Any], key: str) -> ValueType:
    for type_, stored in NUMBERS.items():
        if dtype.newbyteorder("<") == stored:
            return type_
    raise SettingError(key, dtype.name, "of a type that GGUF has: 8 to 64 bits, float32 or float64")


def _string(text: str | bytes) -> bytes:
    # A lone surrogate, of a file's name or of JSON, has no bytes in UTF-8.
    stored = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return struct.pack("<Q", len(stored)) + stored


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
