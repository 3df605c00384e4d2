"""The GGUF container: its header, metadata and tensor directory, checked as they are read.

::

    "GGUF", version u32, number of tensors u64, number of metadata keys u64
    metadata                            key string, type u32, value
    tensor directory                    name string, number of dimensions u32,
                                        dimensions u64, innermost first, type u32, offset u64
    padding to the alignment            ``general.alignment``, 32 where that key is missing
    tensor data                         each at its offset from here

Source: the GGUF specification in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import math
from reprlib import repr as shown  # cuts a hostile file's endless string short
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrllama.checkpoints.gguf_metadata import (
    MAX_KEYS,
    SMALLEST_KEY_VALUE,
    Cursor,
    read_metadata,
)
from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.errors import (
    CorruptFileError,
    TensorError,
    UnknownFormatError,
    UnsupportedModelError,
    UnsupportedTypeError,
)
from pyrllama.quants import block_size, row_bytes
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMS = 4
MAX_TENSORS = 1 << 17
_SMALLEST_ENTRY = 8 + 1 + 4 + 8 + 4 + 8
"""Bytes that the directory takes for a vector with a one-letter name."""


class _Entry(NamedTuple):
    """A tensor of the directory; ``offset`` counts from the start of the tensor data."""

    info: TensorInfo
    offset: int
    length: int


class GgufFile:
    """An open GGUF file: what it says of itself, and its tensors' bytes.

    Nothing is demanded of the model: a file with a vocabulary and no tensors opens too.

    Raises ``UnknownFormatError`` for another version or byte order, ``CorruptFileError`` for
    anything that contradicts itself or the file's size, ``UnsupportedTypeError`` for a tensor
    type without a name, and ``UnsupportedModelError`` for one part of a split file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        self.version = _read_version(self._file)
        cursor = Cursor(self._file, len(MAGIC) + 4)
        n_tensors = cursor.count("tensors", _SMALLEST_ENTRY, MAX_TENSORS)
        n_keys = cursor.count("metadata keys", SMALLEST_KEY_VALUE, MAX_KEYS)
        self.metadata: Mapping[str, Any] = MappingProxyType(read_metadata(cursor, n_keys))
        _check_split(self.path, self.metadata)
        self.alignment = _alignment(self.path, self.metadata)
        self._entries = _read_directory(self.path, cursor, n_tensors)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: entry.info for name, entry in self._entries.items()}
        )
        self._data_start = -(-cursor.offset // self.alignment) * self.alignment
        self._check_extents()

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's stored bytes as a view: ``(rows, bytes per row)``."""
        entry = self._entry(name)
        rows = math.prod(entry.info.shape[:-1])
        return self._file.view(self._data_start + entry.offset, entry.length).reshape(rows, -1)

    def release(self, name: str) -> None:
        """Give a tensor's pages back to the system."""
        entry = self._entry(name)
        self._file.release(self._data_start + entry.offset, entry.length)

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise TensorError(self.path, f"there is no tensor {name} in this file")
        return self._entries[name]

    def _check_extents(self) -> None:
        """Check that tensors are aligned, inside the file, and do not share bytes."""
        end = 0
        for info, offset, length in sorted(self._entries.values(), key=lambda e: e.offset):
            where = f"the tensor {info.name} of {length} bytes at offset {offset} of the data"
            if offset % self.alignment:
                raise CorruptFileError(self.path, f"{where} is not aligned to {self.alignment}")
            if offset < end:
                raise CorruptFileError(self.path, f"{where} overlaps the one before it")
            end = offset + length
            if self._data_start + end > self._file.size:
                raise CorruptFileError(
                    self.path,
                    f"{where} ends at byte {self._data_start + end}, but the file has "
                    f"{self._file.size}; it is truncated or damaged: fetch it again",
                )


def _read_version(file: MappedFile) -> int:
    magic = file.view(0, min(file.size, len(MAGIC))).tobytes()
    if magic != MAGIC:
        raise UnknownFormatError(
            file.path, f"a GGUF file starts with {MAGIC!r}, but this one with {magic!r}"
        )
    version = Cursor(file, len(MAGIC)).u32()
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0 and version:
        raise UnknownFormatError(
            file.path, "this GGUF file is big-endian; get or convert a little-endian one"
        )
    raise UnknownFormatError(
        file.path, f"this is GGUF version {version}; versions 2 and 3 are read: convert it again"
    )


def _check_split(path: Path, metadata: Mapping[str, Any]) -> None:
    parts = metadata.get("split.count", 1)
    if not isinstance(parts, int):
        raise CorruptFileError(path, f"split.count is {shown(parts)}, not a number of parts")
    if parts > 1:
        raise UnsupportedModelError(
            path,
            f"this is one of {parts} parts of a split GGUF file, which cannot be read yet; "
            f"join them with llama.cpp's `gguf-split --merge`",
        )


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    power_of_two = isinstance(alignment, int) and alignment > 0 and alignment.bit_count() == 1
    if not power_of_two or alignment > MAX_ALIGNMENT:
        raise CorruptFileError(
            path,
            f"general.alignment is {shown(alignment)}, not a power of two up to {MAX_ALIGNMENT}",
        )
    return int(alignment)


def _read_directory(path: Path, cursor: Cursor, count: int) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        name = cursor.name("a tensor's name", entries)
        entries[name] = _read_entry(path, cursor, name)
    return entries


def _read_entry(path: Path, cursor: Cursor, name: str) -> _Entry:
    n_dims = cursor.u32()
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.corrupt(f"the tensor {name} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
    shape = tuple(cursor.u64() for _ in range(n_dims))[::-1]
    if 0 in shape:
        raise cursor.corrupt(f"the tensor {name} has the empty shape {shape}")
    type_ = _tensor_type(path, name, cursor.u32())
    if shape[-1] % block_size(type_):
        raise cursor.corrupt(
            f"the tensor {name} has rows of {shape[-1]}, no multiple of {type_.name}'s "
            f"{block_size(type_)}"
        )
    length = math.prod(shape[:-1]) * row_bytes(type_, shape[-1])
    return _Entry(TensorInfo(name, shape, type_), cursor.u64(), length)


def _tensor_type(path: Path, name: str, code: int) -> TensorType:
    try:
        return TensorType(code)
    except ValueError:
        raise UnsupportedTypeError(
            path, f"the tensor {name} has the type code {code}, which is not a known GGUF type"
        ) from None
