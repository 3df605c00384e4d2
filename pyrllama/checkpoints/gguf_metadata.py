"""GGUF's metadata: typed values behind string keys, read without copying the large ones.

A value is a number, a string, or an array of one type of value.  Arrays of numbers stay views
of the mapped file, arrays of strings become a ``StringArray`` that knows only where each
string starts: a vocabulary of 128,000 tokens costs a walk over the lengths, not a list.

Source: the GGUF specification in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import enum
import struct
from array import array
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from pyrllama.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pyrllama.checkpoints.mapped import MappedFile

MAX_KEYS = 1 << 16
MAX_NAME = (1 << 16) - 1
"""Bytes of a key, as the specification has it, and of a tensor's name."""
MAX_DEPTH = 4
"""Arrays in arrays: the specification sets no limit, files in use have none."""
MAX_BYTES = 1 << 28
"""Memory that the values of one file may take, apart from what stays a view of the file."""

_INDEX_BYTES = 8
_NESTED_BYTES = 256
_U32_BYTES = 4
_U64 = struct.Struct("<Q")


class ValueType(enum.IntEnum):
    """How a metadata value is stored; the codes are ``gguf_metadata_value_type``."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMBERS: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype(np.bool_),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
"""The types of fixed size, as NumPy reads them."""

_SMALLEST = {
    **{type_: dtype.itemsize for type_, dtype in NUMBERS.items()},
    ValueType.STRING: _U64.size,
    ValueType.ARRAY: _U32_BYTES + _U64.size,
}
"""Bytes that a value takes at least."""
SMALLEST_KEY_VALUE = _U64.size + 1 + _U32_BYTES + 1
"""Bytes of a one-letter key, a type, and a one-byte number."""


_SEPARATOR = 0x1F
SEPARATOR = chr(_SEPARATOR)
"""Stands between strings that are joined; a vocabulary that holds it is read string by string."""


class StringArray(Sequence[str]):
    """The strings of a GGUF array, each decoded when it is asked for.

    ``raw`` gives the bytes as they are stored; as text, bytes that are not UTF-8 become
    U+FFFD.
    """

    def __init__(self, data: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
        self._data = data
        self._starts = starts  # (strings,): where the length before each string stands

    def raw(self, index: int) -> bytes:
        """Return the stored bytes of one string."""
        start = int(self._starts[index])
        first = start + _U64.size
        (length,) = _U64.unpack_from(self._data.data, start)
        return self._data[first : first + length].tobytes()

    def raws(self) -> Iterator[bytes]:
        """Go through the stored bytes of all strings, faster than one by one."""
        if not len(self):
            return iter(())
        first = int(self._starts[0])
        # A string ends where the length of the next one stands.
        starts = (self._starts - first).tolist()
        ends = [*starts[1:], starts[-1] + _U64.size + len(self.raw(-1))]
        stored = self._data[first : first + ends[-1]].tobytes()
        width = _U64.size
        return (stored[a + width : b] for a, b in zip(starts, ends, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self.raw(index).decode("utf-8", errors="replace")

    def joined(self) -> str | None:
        """Return all strings with ``SEPARATOR`` between them; None if one holds it, or no UTF-8.

        Decoding a vocabulary and its merges at once takes a tenth of decoding each string.
        """
        if not len(self):
            return None
        first, last = int(self._starts[0]), int(self._starts[-1])
        stored = self._data[first : last + _U64.size + len(self.raw(-1))].copy()
        for byte in range(_U64.size):  # each length becomes one separator and seven zeros
            stored[self._starts - first + byte] = 0
        n_zeros = _U64.size * len(self)
        if np.count_nonzero(stored) != len(stored) - n_zeros or (stored == _SEPARATOR).any():
            return None
        stored[self._starts[1:] - first] = _SEPARATOR
        try:
            return stored.tobytes().translate(None, b"\0").decode("utf-8")
        except UnicodeDecodeError:
            return None

    def __iter__(self) -> Iterator[str]:
        text = self.joined()
        if text is not None:
            return iter(text.split(SEPARATOR))
        return (raw.decode("utf-8", errors="replace") for raw in self.raws())

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"


class Cursor:
    """A place in a mapped GGUF file that moves on with every value read.

    Everything raises ``CorruptFileError`` for lengths and counts that the rest of the file
    cannot hold, before anything is allocated for them.
    """

    def __init__(self, file: MappedFile, offset: int = 0) -> None:
        self.offset = offset
        self._file = file
        self._data = file.view(0, file.size)
        self._budget = MAX_BYTES

    def take(self, length: int) -> NDArray[np.uint8]:
        """Return the next ``length`` bytes as a view and move behind them."""
        taken = self._file.view(self.offset, length)
        self.offset += length
        return taken

    def u32(self) -> int:
        """Read an unsigned number of four bytes."""
        return int.from_bytes(self.take(_U32_BYTES).tobytes(), "little")

    def u64(self) -> int:
        """Read an unsigned number of eight bytes."""
        return int.from_bytes(self.take(_U64.size).tobytes(), "little")

    def count(self, what: str, smallest: int, most: int | None = None) -> int:
        """Read how many things of at least ``smallest`` bytes follow, ``most`` of them at most."""
        offset = self.offset
        count = self.u64()
        left = self._file.size - self.offset
        if count * smallest > left:
            raise self.corrupt(f"{count} {what} at offset {offset} do not fit into {left} bytes")
        if most is not None and count > most:
            raise self.corrupt(f"{count} {what} at offset {offset} are over the limit, {most}")
        return count

    def name(self, what: str, others: Container[str]) -> str:
        """Read the name of a key or tensor: printable, not empty, and none of the ``others``."""
        offset = self.offset
        name = self.string(what, MAX_NAME)
        if not name or not name.isprintable() or name in others:
            raise self.corrupt(
                f"{what} at offset {offset} is empty, repeated or unprintable: {name[:80]!r}"
            )
        return name

    def string(self, what: str, most: int | None = None) -> str:
        """Read a string; bytes that are not UTF-8 become U+FFFD."""
        length = self.count(f"bytes of {what}", 1, most)
        self._charge(length)
        return self.take(length).tobytes().decode("utf-8", errors="replace")

    def value(self, key: str) -> Any:
        """Read a type and then a value of it: what ``key`` stands for."""
        return self._value(self._value_type(key), key)

    def corrupt(self, problem: str) -> CorruptFileError:
        """Return the error for a damaged file; the caller raises it."""
        return CorruptFileError(
            self._file.path, f"{problem}; the file is truncated or damaged: fetch it again"
        )

    def _value(self, type_: ValueType, key: str, depth: int = 0) -> Any:
        if type_ is ValueType.STRING:
            return self.string(key)
        if type_ is ValueType.ARRAY:
            return self._array(key, depth + 1)
        return self._numbers(type_, 1, key)[0].item()

    def _array(self, key: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.corrupt(f"{key} nests arrays deeper than {MAX_DEPTH}")
        type_ = self._value_type(key)
        count = self.count(f"values of {key}", _SMALLEST[type_])
        if type_ is ValueType.STRING:
            self._charge(count * _INDEX_BYTES)
            return StringArray(self._data, self._string_starts(count, key))
        if type_ is ValueType.ARRAY:
            self._charge(count * _NESTED_BYTES)
            return [self._value(type_, key, depth) for _ in range(count)]
        return self._numbers(type_, count, key)

    def _numbers(self, type_: ValueType, count: int, key: str) -> NDArray[Any]:
        dtype = NUMBERS[type_]
        stored = self.take(count * dtype.itemsize)
        if type_ is ValueType.BOOL and stored.max(initial=0) > 1:
            raise self.corrupt(f"{key} holds a truth value that is neither 0 nor 1")
        return stored.view(dtype)

    def _string_starts(self, count: int, key: str) -> NDArray[np.int64]:
        """Return where each of ``count`` strings starts and move behind the last one.

        Local names and one call a string: a vocabulary and its merges are 400,000 of them.
        """
        starts = array("q", bytes(count * _INDEX_BYTES))
        offset, buffer, unpack, width = self.offset, self._data.data, _U64.unpack_from, _U64.size
        last = self._file.size - width
        for index in range(count):
            if offset > last:
                raise self.corrupt(f"string {index} of {key} lies behind the end of the file")
            starts[index] = offset
            offset += width + unpack(buffer, offset)[0]
        if offset > self._file.size:
            raise self.corrupt(f"the last string of {key} ends behind the end of the file")
        self.offset = offset
        return np.frombuffer(starts, np.int64)

    def _value_type(self, key: str) -> ValueType:
        offset = self.offset
        code = self.u32()
        try:
            return ValueType(code)
        except ValueError:
            raise self.corrupt(f"{key} has the unknown value type {code} at {offset}") from None

    def _charge(self, n_bytes: int) -> None:
        self._budget -= n_bytes
        if self._budget < 0:
            raise self.corrupt(f"the metadata takes more than {MAX_BYTES >> 20} MiB")


def read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    """Read ``count`` keys and their values."""
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.name("a metadata key", metadata)
        metadata[key] = cursor.value(key)
    return metadata
