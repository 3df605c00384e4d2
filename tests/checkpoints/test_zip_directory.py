"""The zip directory: stored records are found, anything odd is a named error."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

import pytest

from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.checkpoints.zip_directory import ZipRecord, read_zip_directory
from pyrllama.errors import CorruptFileError

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = {"a/one": b"first", "a/two": b"second record", "a/none": b""}
CENTRAL_FLAGS, CENTRAL_METHOD, CENTRAL_COMPRESSED, CENTRAL_SIZE, CENTRAL_OFFSET = 8, 10, 20, 24, 42
LOCAL_METHOD, LOCAL_NAME = 8, 30
END_COUNT, END_SIZE, END_OFFSET = 10, 12, 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in RECORDS.items():
            archive.writestr(name, content)
    return path


def read(path: Path) -> dict[str, ZipRecord]:
    return read_zip_directory(MappedFile(path))


def patch(path: Path, signature: bytes, field: int, value: bytes) -> None:
    """Overwrite a field of the first header with this signature."""
    content = bytearray(path.read_bytes())
    at = content.index(signature) + field
    content[at : at + len(value)] = value
    path.write_bytes(content)


def refused(path: Path, problem: str) -> None:
    with pytest.raises(CorruptFileError, match=problem) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_records_lie_where_the_directory_says(path: Path) -> None:
    content = path.read_bytes()
    found = read(path)
    assert list(found) == list(RECORDS)
    for name, expected in RECORDS.items():
        record = found[name]
        assert record.name == name
        assert content[record.offset : record.offset + record.size] == expected


def test_empty_archive_has_no_records(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()
    assert read(path) == {}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_record_is_refused(path: Path, method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/one", b"0" * 1000)
    refused(path, "'a/one' is compressed.*; unzip the file into a folder")


def test_duplicate_name_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/one", b"other")
    refused(path, "two records are named 'a/one'")


@pytest.mark.parametrize("flag", [0x0001, 0x0040, 0x2000])
def test_encrypted_record_is_refused(path: Path, flag: int) -> None:
    patch(path, b"PK\x01\x02", CENTRAL_FLAGS, struct.pack("<H", flag))
    refused(path, "'a/one' is encrypted")


def test_overlapping_records_are_refused(path: Path) -> None:
    # The first record is said to go on over the second one.
    size = struct.pack("<I", 60)
    patch(path, b"PK\x01\x02", CENTRAL_COMPRESSED, size + size)
    refused(path, "'a/one' and 'a/two' lie over each other")


def test_record_beyond_the_directory_is_refused(path: Path) -> None:
    size = struct.pack("<I", 100_000)
    patch(path, b"PK\x01\x02", CENTRAL_COMPRESSED, size + size)
    refused(path, "'a/one' of 100000 bytes at 35 goes beyond byte")


def test_record_beyond_the_file_is_refused(path: Path) -> None:
    patch(path, b"PK\x01\x02", CENTRAL_OFFSET, struct.pack("<I", 0x7FFFFFFF))
    refused(path, "at offset 2147483647")


def test_local_header_that_differs_is_refused(path: Path) -> None:
    content = path.read_bytes()
    patch(path, b"PK\x03\x04", LOCAL_NAME, b"b/one")
    refused(path, "'a/one' at 0 belies the directory")
    path.write_bytes(content)
    patch(path, b"PK\x03\x04", LOCAL_METHOD, struct.pack("<H", 8))
    refused(path, "'a/one' at 0 belies the directory")


def test_missing_local_header_is_refused(path: Path) -> None:
    patch(path, b"PK\x03\x04", 0, b"XXXX")
    refused(path, r"no b'PK\\x03\\x04' at byte 0")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (END_COUNT, struct.pack("<H", 2), "has 3 records and not 2"),
        (END_SIZE, struct.pack("<I", 0x7FFFFFFF), "a directory of 2147483647 bytes"),
        (END_OFFSET, struct.pack("<I", 0x7FFFFFFF), "at 2147483647 cannot be"),
        (END_OFFSET, struct.pack("<I", 3), r"no b'PK\\x01\\x02' at byte 3"),
        (END_SIZE, struct.pack("<I", 10), "3 records|has 1 records and not 3"),
        (END_COUNT, struct.pack("<H", 0xFFFF), r"no b'PK\\x06\\x07'"),
        (END_OFFSET, struct.pack("<I", 0xFFFFFFFF), r"no b'PK\\x06\\x07'"),
    ],
)
def test_end_record_that_belies_the_file_is_refused(
    path: Path, field: int, value: bytes, problem: str
) -> None:
    patch(path, b"PK\x05\x06", field, value)
    refused(path, problem)


def test_size_that_lacks_its_zip64_field_is_refused(path: Path) -> None:
    patch(path, b"PK\x01\x02", CENTRAL_SIZE, b"\xff" * 4)
    refused(path, "'a/one' lacks its 64-bit size")


@pytest.mark.parametrize("offset", [0, 1 << 40, (1 << 64) - 1])
def test_zip64_end_that_is_not_there_is_refused(path: Path, offset: int) -> None:
    content = path.read_bytes()
    at = content.index(b"PK\x05\x06")
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, offset, 1)
    path.write_bytes(content[:at] + locator + content[at:])
    patch(path, b"PK\x05\x06", END_COUNT, b"\xff\xff")
    refused(path, r"no b'PK\\x06\\x06'|at offset")


def test_name_that_is_not_utf8_is_refused(path: Path) -> None:
    patch(path, b"PK\x01\x02", 46, b"\xff")
    refused(path, "the name at byte .* is not UTF-8")


def test_file_without_an_end_record_is_refused(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(100_000))
    refused(path, "its directory is missing at the end, byte 100004; fetch the file again")
