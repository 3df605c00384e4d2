"""Finds the records of a zip that stores them uncompressed, so that they can be mapped.

Source of the layout: PKWARE's APPNOTE 6.3.10.  The standard library's ``zipfile`` reads
archives of any kind and trusts them further: it takes duplicate names and overlapping
records, and reads a directory of any size.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pyrllama.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyrllama.checkpoints.mapped import MappedFile

LOCAL_SIGNATURE = b"PK\x03\x04"
CENTRAL_SIGNATURE = b"PK\x01\x02"
END_SIGNATURE = b"PK\x05\x06"
END64_SIGNATURE = b"PK\x06\x06"
LOCATOR64_SIGNATURE = b"PK\x06\x07"

MAX_COMMENT_BYTES = 0xFFFF
MAX_DIRECTORY_BYTES = 16 << 20
"""A shard of 65B has 800 records, that is, 0.05 MB of directory."""
STORED = 0
ENCRYPTED_FLAGS = 0x0001 | 0x0040 | 0x2000
ZIP64_EXTRA = 0x0001
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF
"""Values that say: the true one does not fit, look in the zip64 record."""


class _End(NamedTuple):
    """End of central directory: where the directory lies."""

    disks: bytes
    entries_here: int
    entries: int
    size: int
    offset: int
    comment: int


class _Central(NamedTuple):
    """An entry of the central directory, without its name."""

    versions: bytes
    flags: int
    method: int
    time_and_crc: bytes
    compressed: int
    size: int
    name_length: int
    extra_length: int
    comment_length: int
    disk_and_attributes: bytes
    offset: int


_END = struct.Struct("<4x4sHHIIH")
_LOCATOR64 = struct.Struct("<4x4xQ4x")
_END64 = struct.Struct("<4x28xQQQ")
_CENTRAL = struct.Struct("<4x4sHH8sIIHHH8sI")
_LOCAL = struct.Struct("<4x2xHH16xHH")


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """Where the bytes of a stored record lie in the file."""

    name: str
    offset: int
    size: int


def read_zip_directory(file: MappedFile) -> dict[str, ZipRecord]:
    """Return all records by name.

    Raises ``CorruptFileError`` for a zip that is truncated, compressed, encrypted, or whose
    records lie outside of the file, over each other, or twice under one name.
    """
    return _Directory(file).read()


class _Directory:
    """Walks from the end record through the directory to the records themselves."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file

    def read(self) -> dict[str, ZipRecord]:
        offset, size, count = self._locate()
        records: dict[str, ZipRecord] = {}
        spans = []
        for entry, name in self._entries(offset, size):
            if name in records:
                raise self._error(f"two records are named {name!r}")
            records[name] = self._record(entry, name, offset)
            spans.append((entry.offset, records[name].offset + entry.size, name))
        if len(records) != count:
            raise self._error(f"the directory has {len(records)} records and not {count}")
        self._check_overlaps(spans)
        return records

    def _locate(self) -> tuple[int, int, int]:
        """Return the offset, the size in bytes, and the number of records of the directory."""
        end_at, end = self._find_end()
        offset, size, count = end.offset, end.size, end.entries
        if count == FULL_16 or FULL_32 in (offset, size):
            count, size, offset = self._end64(end_at)
        if size > MAX_DIRECTORY_BYTES or offset + size > end_at:
            raise self._error(f"a directory of {size} bytes at {offset} cannot be")
        return offset, size, count

    def _find_end(self) -> tuple[int, _End]:
        length = min(self._file.size, _END.size + MAX_COMMENT_BYTES)
        start = self._file.size - length
        tail = self._file.view(start, length).tobytes()
        at = tail.rfind(END_SIGNATURE)
        while at >= 0:
            if at + _END.size <= length:
                end = _End(*_END.unpack_from(tail, at))
                if at + _END.size + end.comment == length:
                    return start + at, end
            at = tail.rfind(END_SIGNATURE, 0, at)
        raise self._error(f"its directory is missing at the end, byte {self._file.size}")

    def _end64(self, end_at: int) -> tuple[int, int, int]:
        at = end_at - _LOCATOR64.size
        (offset,) = _LOCATOR64.unpack(self._header(at, LOCATOR64_SIGNATURE, _LOCATOR64.size))
        header = self._header(offset, END64_SIGNATURE, _END64.size)
        count, size, directory = _END64.unpack(header)
        return count, size, directory

    def _entries(self, offset: int, size: int) -> Iterator[tuple[_Central, str]]:
        """Walk through the central directory; directories that ``zip -r`` adds are left out."""
        at, end = offset, offset + size
        while at < end:
            header = self._header(at, CENTRAL_SIGNATURE, _CENTRAL.size)
            entry = _Central(*_CENTRAL.unpack(header))
            at += _CENTRAL.size
            name = self._name(at, entry.name_length)
            at += entry.name_length
            extra = self._file.view(at, entry.extra_length).tobytes()
            at += entry.extra_length + entry.comment_length
            yield self._with_zip64(entry, extra, name), name

    def _with_zip64(self, entry: _Central, extra: bytes, name: str) -> _Central:
        """Take the sizes and the offset that do not fit 32 bits from the zip64 field."""
        full = [key for key in ("size", "compressed", "offset") if getattr(entry, key) == FULL_32]
        if not full:
            return entry
        field = _find_extra(extra, ZIP64_EXTRA)
        if field is None or len(field) < 8 * len(full):
            raise self._error(f"the record {name!r} lacks its 64-bit size")
        values = struct.unpack_from(f"<{len(full)}Q", field)
        return entry._replace(**dict(zip(full, values, strict=True)))

    def _record(self, entry: _Central, name: str, directory: int) -> ZipRecord:
        if entry.flags & ENCRYPTED_FLAGS:
            raise self._error(f"the record {name!r} is encrypted")
        if entry.method != STORED or entry.compressed != entry.size:
            raise self._error(
                f"the record {name!r} is compressed, but PyTorch stores records as they are",
                "unzip the file into a folder of its name without .pth, and it can be read",
            )
        header = self._header(entry.offset, LOCAL_SIGNATURE, _LOCAL.size)
        flags, method, name_length, extra_length = _LOCAL.unpack(header)
        name_at = entry.offset + _LOCAL.size
        if self._name(name_at, name_length) != name or (flags, method) != entry[1:3]:
            raise self._error(f"the record {name!r} at {entry.offset} belies the directory")
        offset = name_at + name_length + extra_length
        if offset + entry.size > directory:
            raise self._error(
                f"the record {name!r} of {entry.size} bytes at {offset} goes beyond byte "
                f"{directory}, where the directory begins"
            )
        return ZipRecord(name, offset, entry.size)

    def _check_overlaps(self, spans: list[tuple[int, int, str]]) -> None:
        spans.sort()
        for (_, end, name), (start, _, following) in pairwise(spans):
            if start < end:
                raise self._error(f"the records {name!r} and {following!r} lie over each other")

    def _header(self, offset: int, signature: bytes, size: int) -> bytes:
        header = self._file.view(offset, size).tobytes()
        if not header.startswith(signature):
            raise self._error(f"no {signature!r} at byte {offset}")
        return header

    def _name(self, offset: int, length: int) -> str:
        try:
            return self._file.view(offset, length).tobytes().decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"the name at byte {offset} is not UTF-8") from None

    def _error(self, problem: str, mend: str = "fetch the file again") -> CorruptFileError:
        path: Path = self._file.path
        return CorruptFileError(path, f"the zip is damaged or truncated: {problem}; {mend}")


def _find_extra(extra: bytes, wanted: int) -> bytes | None:
    """Return the content of an extra field, None where there is no such field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return None
