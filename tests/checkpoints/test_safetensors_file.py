"""Safetensors files: views of the mapped bytes, and a header that is not trusted."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file
from support.mutations import mutations

from pyrllama.checkpoints.safetensors_file import SafetensorsFile
from pyrllama.errors import CorruptFileError, ModelNotFoundError, RllamaError
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

ARRAYS: dict[str, Any] = {
    "matrix": np.arange(24, dtype=np.float32).reshape(4, 6),
    "half": np.linspace(-2, 2, 15).astype(np.float16).reshape(3, 5),
    "brain": np.linspace(-3, 3, 8).astype(ml_dtypes.bfloat16).reshape(2, 4),
    "vector": np.arange(7, dtype=np.float32),
    "long": np.arange(3),
}
TYPES = {
    "matrix": TensorType.F32,
    "half": TensorType.F16,
    "brain": TensorType.BF16,
    "vector": TensorType.F32,
    "long": None,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def write(path: Path, header: object, body: bytes = bytes(16)) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)
    return path


def entry(begin: Any = 0, end: Any = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_are_the_stored_bytes(path: Path) -> None:
    save_file(ARRAYS, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        tensor = file.tensors[name]
        assert (tensor.shape, tensor.type) == (array.shape, TYPES[name])
        rows = tensor.rows()
        expected = array.reshape(1 if array.ndim == 1 else array.shape[0], -1).view(np.uint8)
        np.testing.assert_array_equal(rows, expected)
        assert not rows.flags.owndata
        assert not rows.flags.writeable
    file.close()


def test_file_without_tensors_is_read(path: Path) -> None:
    assert SafetensorsFile(write(path, {}, b"")).tensors == {}


def test_unknown_type_is_known_not_to_be_runnable(path: Path) -> None:
    tensor = SafetensorsFile(write(path, {"a": entry(dtype="F4_E9")})).tensors["a"]
    assert (tensor.type, tensor.stored_as) == (None, "F4_E9")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"\xff{}", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"a": 1, "a": 2}', "a key is there twice"),
        (b"[]", "not an object"),
        ({"a": 1}, "the tensor a has no dtype, shape and two offsets"),
        ({"a": {"dtype": "F32"}}, "no dtype, shape and two offsets"),
        ({"a": entry(dtype=7)}, "no dtype, shape and two offsets"),
        ({"a": entry(begin="0")}, "no dtype, shape and two offsets"),
        ({"a": entry(shape="4")}, "no dtype, shape and two offsets"),
        ({"a": entry(shape=[4.0])}, "senseless shape"),
        ({"a": entry(shape=[-4])}, "senseless shape"),
        ({"a": entry(shape=[True])}, "senseless shape"),
        ({"a": entry(shape=[1] * 9)}, "senseless shape"),
        ({"a": entry(shape=[2**64], dtype="F4_E9")}, "senseless shape"),
        ({"a": entry(end=17)}, "lies at bytes 0 to 17 of 16: the file is truncated"),
        ({"a": entry(begin=-1)}, "lies at bytes -1"),
        ({"a": entry(begin=16, end=0)}, "lies at bytes 16 to 0"),
        ({"a": entry(end=2**70)}, "the file is truncated"),
        ({"a": entry(shape=[5])}, r"shape \(5,\) in F32 does not have 16 bytes"),
        ({"a": entry(shape=[2**62, 2**62])}, "does not have 16 bytes"),
        ({"a": entry(), "b": entry(8, 16, [2])}, "a and b lie over each other"),
    ],
)
def test_header_that_cannot_be_is_refused(path: Path, header: object, problem: str) -> None:
    with pytest.raises(CorruptFileError, match=problem) as caught:
        SafetensorsFile(write(path, header))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [17, 1 << 40, (1 << 64) - 1])
def test_header_longer_than_the_file_is_refused(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + bytes(16))
    with pytest.raises(CorruptFileError, match=f"the header has {length} bytes, the file 24"):
        SafetensorsFile(path)


def test_missing_and_too_short_files_are_named(path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        SafetensorsFile(path)
    path.write_bytes(b"abc")
    with pytest.raises(CorruptFileError, match="8 bytes are wanted at offset 0"):
        SafetensorsFile(path)


def test_every_cut_of_a_file_is_an_error(path: Path) -> None:
    content = save({"a": ARRAYS["matrix"], "b": ARRAYS["half"]})
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptFileError):
            SafetensorsFile(path)


def test_damaged_files_give_named_errors_or_tensors(path: Path) -> None:
    for damaged in mutations(save({"a": ARRAYS["matrix"], "b": ARRAYS["half"]}), 1500):
        path.write_bytes(damaged)
        try:
            file = SafetensorsFile(path)
            for tensor in file.tensors.values():
                tensor.rows()
            file.close()
        except RllamaError as error:
            assert str(path) in str(error)  # noqa: PT017 - success is as good
