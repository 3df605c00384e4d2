from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from support.gguf_writer import (
    ARRAY,
    SCALAR_FORMATS,
    STRING,
    Typed,
    header,
    key_value,
    string,
)

from pyrllama.checkpoints.gguf import GgufFile
from pyrllama.checkpoints.gguf_metadata import MAX_DEPTH, StringArray
from pyrllama.errors import (
    CorruptFileError,
    UnknownFormatError,
)
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from pathlib import Path


NUMBER_CODES = sorted(set(SCALAR_FORMATS) - {7})
EXTREMES: dict[int, list[float]] = {
    0: [0, 255],
    1: [-128, 127],
    2: [0, 65535],
    3: [-(2**15), 2**15 - 1],
    4: [0, 2**32 - 1],
    5: [-(2**31), 2**31 - 1],
    6: [-1.5, math.inf],
    10: [0, 2**64 - 1],
    11: [-(2**63), 2**63 - 1],
    12: [1e-300, math.pi],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def opened(path: Path, stored: bytes) -> GgufFile:
    path.write_bytes(stored)
    return GgufFile(path)


def metadata_of(path: Path, *pairs: bytes) -> dict[str, Any]:
    return dict(opened(path, header(0, len(pairs)) + b"".join(pairs)).metadata)


@pytest.mark.parametrize("code", NUMBER_CODES)
def test_every_type_of_number(path: Path, code: int) -> None:
    low, high = EXTREMES[code]
    got = metadata_of(
        path, key_value("low", Typed(code, low)), key_value("high", Typed(code, high))
    )
    assert got == {"low": low, "high": high}
    assert {type(value) for value in got.values()} == {float if code in {6, 12} else int}


@pytest.mark.parametrize("code", NUMBER_CODES)
def test_arrays_of_numbers_are_views_of_the_file(path: Path, code: int) -> None:
    array = metadata_of(path, key_value("k", Typed(ARRAY, EXTREMES[code], code)))["k"]
    assert array.tolist() == EXTREMES[code]
    assert not array.flags.writeable
    assert not array.flags.owndata


def test_truth_values(path: Path) -> None:
    got = metadata_of(
        path,
        key_value("yes", True),
        key_value("no", False),
        key_value("array", [True, False, True]),
    )
    assert got["yes"] is True
    assert got["no"] is False
    assert got["array"].tolist() == [True, False, True]


def test_strings(path: Path) -> None:
    got = metadata_of(path, key_value("a", "žluťoučký 🦙"), key_value("empty", ""))
    assert got == {"a": "žluťoučký 🦙", "empty": ""}


def test_arrays_of_strings_are_decoded_one_by_one(path: Path) -> None:
    words = ["a", "", "🦙", "x" * 300, b"\xff\xfe", "z"]
    array = metadata_of(path, key_value("k", words))["k"]
    assert isinstance(array, StringArray)
    assert len(array) == 6
    assert list(array) == ["a", "", "🦙", "x" * 300, "\ufffd\ufffd", "z"]
    assert [array[i] for i in range(6)] == list(array)
    assert list(array.raws()) == [w.encode() if isinstance(w, str) else w for w in words]
    assert array.raw(4) == b"\xff\xfe"
    assert array[-1] == "z"
    assert array[1:3] == ["", "🦙"]
    assert "🦙" in array
    assert repr(array) == "<6 strings>"
    with pytest.raises(IndexError):
        array[6]


@pytest.mark.parametrize("code", [*SCALAR_FORMATS, STRING, ARRAY])
def test_empty_arrays(path: Path, code: int) -> None:
    got = metadata_of(path, key_value("k", Typed(ARRAY, [], code)), key_value("after", 5))
    assert list(got["k"]) == []
    assert got["after"] == 5


def test_arrays_in_arrays(path: Path) -> None:
    numbers, words = Typed(ARRAY, [1, 2], 4), Typed(ARRAY, ["a", "b"], STRING)
    got = metadata_of(path, key_value("k", Typed(ARRAY, [numbers, words], ARRAY)))["k"]
    assert [list(item) for item in got] == [[1, 2], ["a", "b"]]


def test_strings_that_are_not_utf8_are_shown_as_far_as_they_can(path: Path) -> None:
    assert metadata_of(path, key_value(b"k\xff", b"caf\xe9"))["k\ufffd"] == "caf\ufffd"


def test_metadata_cannot_be_changed(path: Path) -> None:
    file = opened(path, header(0, 1) + key_value("k", 1))
    with pytest.raises(TypeError):
        file.metadata["k"] = 2  # type: ignore[index]


def test_reads_what_the_gguf_package_writes(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int64("i64", -5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_array("words", ["one", "two"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_custom_alignment(64)
    values = np.arange(24, dtype=np.float32).reshape(3, 8)
    writer.add_tensor("t", values)
    writer.add_tensor("h", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert [file.metadata[key] for key in ("u8", "i64", "f64", "bool")] == [200, -5, 0.1, True]
    assert list(file.metadata["words"]) == ["one", "two"]
    assert file.metadata["numbers"].tolist() == [1, -2, 3]
    assert file.alignment == 64
    assert file.tensors["t"] == TensorInfo("t", (3, 8), TensorType.F32)
    np.testing.assert_array_equal(file.data("t").view("<f4"), values)
    np.testing.assert_array_equal(file.data("h").view("<f2"), values)


def test_not_gguf(path: Path) -> None:
    with pytest.raises(UnknownFormatError, match=r"starts with b'GGUF', but this one with b'GG'"):
        opened(path, b"GG")


@pytest.mark.parametrize(
    ("version", "problem"),
    [(1, "GGUF version 1"), (4, "GGUF version 4"), (0, "version 0"), (3 << 24, "big-endian")],
)
def test_other_versions(path: Path, version: int, problem: str) -> None:
    with pytest.raises(UnknownFormatError, match=problem):
        opened(path, header(0, 0, version))


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (b"GGUF\3", "4 bytes are wanted at offset 4, but the file has 5"),
        (header(0, 0)[:-1], "8 bytes are wanted at offset 16"),
        (header(2**63, 0), "9223372036854775808 tensors at offset 8 do not fit into 8 bytes"),
        (header(0, 2**64 - 1), "18446744073709551615 metadata keys at offset 16 do not fit"),
        (header(0, 1) + bytes(20), "key at offset 24 is empty, .*: ''"),
        (header(0, 1) + struct.pack("<Q", 2**60) + bytes(20), "bytes of a metadata key at"),
        (header(0, 1) + string("k") + struct.pack("<I", 13) + bytes(9), "unknown value type 13"),
        (header(0, 1) + string("key") + struct.pack("<I", 4) + b"\0", "4 bytes are wanted"),
        (header(0, 1) + key_value("k", "long enough")[:-4], "11 bytes of k at offset"),
        (header(0, 1) + key_value("k", Typed(0, 2))[:-5] + struct.pack("<IB", 7, 2),
         "k holds a truth value that is neither 0 nor 1"),
        (header(0, 1) + key_value("k", Typed(ARRAY, [0, 2], 0)).replace(
            struct.pack("<IQ", 0, 2), struct.pack("<IQ", 7, 2)), "neither 0 nor 1"),
        (header(0, 2) + key_value("k", 1) * 2, "key at offset 41 is empty, repeated or .*: 'k'"),
        (header(0, 1) + string("k") + struct.pack("<IIQ", 9, 4, 2**61), "values of k at offset"),
        (header(0, 1) + string("k") + struct.pack("<IIQ", 9, 8, 2**61), "values of k at offset"),
        (header(0, 1) + string("k") + struct.pack("<IIQ", 9, 99, 0), "unknown value type 99"),
        (header(0, 1) + key_value("k", ["a", "bc"])[:-1], "last string of k ends behind the end"),
        (header(0, 1) + key_value("k", ["a", "b"])[:-9] + struct.pack("<Q", 2**63) + b"b",
         "last string of k ends behind the end"),
        (header(0, 1) + string("k") + struct.pack("<IIQQ", 9, 8, 2, 2**63) + bytes(8),
         "string 1 of k lies behind the end of the file"),
    ],
)  # fmt: skip
def test_impossible_metadata(path: Path, stored: bytes, problem: str) -> None:
    with pytest.raises(CorruptFileError, match=problem):
        opened(path, stored)


def test_arrays_nested_too_deep(path: Path) -> None:
    value = Typed(ARRAY, [1], 4)
    for _ in range(MAX_DEPTH):
        value = Typed(ARRAY, [value], ARRAY)
    with pytest.raises(CorruptFileError, match="nests arrays deeper than 4"):
        metadata_of(path, key_value("k", value))


def test_too_many_nested_arrays(path: Path) -> None:
    count = (1 << 20) + 1
    stored = string("k") + struct.pack("<IIQ", ARRAY, ARRAY, count) + bytes(12 * count)
    with pytest.raises(CorruptFileError, match="the metadata takes more than 256 MiB"):
        opened(path, header(0, 1) + stored)


@pytest.mark.parametrize("counts", [(1 << 18, 0), (0, 1 << 17)])
def test_counts_over_the_limit_though_the_file_could_hold_them(
    path: Path, counts: tuple[int, int]
) -> None:
    with pytest.raises(CorruptFileError, match="are over the limit"):
        opened(path, header(*counts) + bytes(1 << 24))


# --- strings at once --------------------------------------------------------------------------


def stored_strings(*strings: bytes) -> StringArray:
    """Return the array that a file with these strings holds."""
    stored, starts = b"", []
    for one in strings:
        starts.append(len(stored))
        stored += len(one).to_bytes(8, "little") + one
    return StringArray(np.frombuffer(stored, np.uint8), np.array(starts, np.int64))


@pytest.mark.parametrize(
    "strings",
    [
        [b"a"],
        [b"", b"", b""],
        [b"one", b"", "zwölf €".encode(), b"x" * 256, b"y" * 70_000, b"\n \t"],
        [b"a\xff", b"\xe2\x82", b"b"],
        [b"zero \x00 inside", b"b"],
        [b"separator \x1f inside", b"b"],
        [b"\x00" * 7, b"\x1f"],
    ],
)
def test_strings_decoded_at_once_are_those_decoded_one_by_one(strings: list[bytes]) -> None:
    array = stored_strings(*strings)
    expected = [one.decode("utf-8", "replace") for one in strings]
    assert list(array) == expected
    assert [array[i] for i in range(len(array))] == expected


def test_what_cannot_be_joined_is_read_string_by_string() -> None:
    assert stored_strings(b"a", "ö".encode()).joined() == "a\x1fö"
    for odd in (b"\xff", b"\x00", b"\x1f"):
        assert stored_strings(b"a", odd).joined() is None
    assert StringArray(np.empty(0, np.uint8), np.empty(0, np.int64)).joined() is None
