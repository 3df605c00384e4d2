"""Writing GGUF: every type of metadata, aligned tensors, and nothing left of what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.checkpoints.gguf_metadata import NUMBERS, StringArray, ValueType
from pyrllama.checkpoints.gguf_writer import PendingTensor, stored_bytes, write_gguf
from pyrllama.errors import CheckpointError, SettingError
from pyrllama.quants import quantize
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def read(path: Path) -> dict[str, Any]:
    file = GgufFile(path)
    values = {key: plain(value) for key, value in file.metadata.items()}
    file.close()
    return values


def plain(value: Any) -> Any:
    """Return a value with all its arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, StringArray | list):
        return [plain(item) for item in value]
    return value


def field_types(path: Path) -> dict[str, list[int]]:
    """Return the types that ggml's own reader sees, its header's fields apart."""
    fields = gguf.GGUFReader(path).fields
    return {key: list(field.types) for key, field in fields.items() if "GGUF." not in key}


def pending(
    name: str, values: NDArray[np.float32], type_: TensorType = TensorType.F32
) -> PendingTensor:
    stored = quantize(type_, values.reshape(-1, values.shape[-1]))
    return PendingTensor(TensorInfo(name, values.shape, type_), lambda: [stored])


def ramp(*shape: int) -> NDArray[np.float32]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("type_", NUMBERS)
def test_every_number_type_alone_and_in_an_array(tmp_path: Path, type_: ValueType) -> None:
    dtype = NUMBERS[type_]
    values = np.array([0, 1, 1, 0], dtype)
    if dtype.kind in "iu":
        values[:2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    path = tmp_path / "numbers.gguf"
    write_gguf(path, {"one": values[1], "many": values, "none": values[:0]}, [])
    assert read(path) == {"one": values[1].item(), "many": values.tolist(), "none": []}
    assert field_types(path) == {
        "one": [type_],
        "many": [ValueType.ARRAY, type_],
        "none": [ValueType.ARRAY],  # ggml's reader looks for the items' type at the first one
    }


def test_plain_values_get_the_usual_types(tmp_path: Path) -> None:
    values = {
        "text": "Grüße, 世界",
        "flag": True,
        "small": 7,
        "negative": -7,
        "large": 1 << 40,
        "low": -(1 << 40),
        "real": 0.5,
        "huge": 1e300,
        "texts": ["a", "", "é"],
        "flags": [True, False],
        "nested": [[1, 2], [3]],
    }
    path = tmp_path / "plain.gguf"
    write_gguf(path, values, [])
    assert read(path) == values
    types = field_types(path)
    assert {key: types[key][0] for key in list(values)[:8]} == {
        "text": ValueType.STRING,
        "flag": ValueType.BOOL,
        "small": ValueType.UINT32,
        "negative": ValueType.INT32,
        "large": ValueType.UINT64,
        "low": ValueType.INT64,
        "real": ValueType.FLOAT32,
        "huge": ValueType.FLOAT64,
    }


def test_a_lone_surrogate_has_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    write_gguf(path, {"name": "a\udce9"}, [])
    assert read(path) == {"name": "a?"}


def test_strings_of_another_file_pass_with_their_bytes(tmp_path: Path) -> None:
    stored = b"\x02\0\0\0\0\0\0\0\xff\xfe" + b"\x01\0\0\0\0\0\0\0a"
    strings = StringArray(np.frombuffer(stored, np.uint8), np.array([0, 10]))
    path = tmp_path / "strings.gguf"
    write_gguf(path, {"tokens": strings}, [])
    file = GgufFile(path)
    assert list(file.metadata["tokens"].raws()) == [b"\xff\xfe", b"a"]
    file.close()


@pytest.mark.parametrize("alignment", [None, 64, 4096])
def test_tensors_are_aligned_and_keep_their_bytes(tmp_path: Path, alignment: int | None) -> None:
    metadata = {} if alignment is None else {"general.alignment": alignment}
    values = {"vector": ramp(3), "matrix": ramp(5, 32), "cube": ramp(2, 3, 64)}
    types = dict(zip(values, (TensorType.F32, TensorType.Q8_0, TensorType.F16), strict=True))
    path = tmp_path / "tensors.gguf"
    write_gguf(path, metadata, [pending(n, v, types[n]) for n, v in values.items()])

    file = GgufFile(path)
    assert file.version == 3
    assert list(file.tensors) == list(values)
    for name, numbers in values.items():
        assert file.tensors[name] == TensorInfo(name, numbers.shape, types[name])
        expected = quantize(types[name], numbers.reshape(-1, numbers.shape[-1]))
        np.testing.assert_array_equal(file.data(name), expected)
    file.close()
    for tensor in gguf.GGUFReader(path).tensors:
        assert tensor.data_offset % (alignment or 32) == 0
        assert int(tensor.tensor_type) == int(types[tensor.name])
        assert tuple(tensor.shape)[::-1] == values[tensor.name].shape
    assert path.stat().st_size % (alignment or 32) == 0


def test_a_tensor_may_come_in_parts(tmp_path: Path) -> None:
    whole = quantize(TensorType.F32, ramp(7, 8))
    info = TensorInfo("t", (7, 8), TensorType.F32)
    path = tmp_path / "parts.gguf"
    write_gguf(path, {}, [PendingTensor(info, lambda: iter([whole[:3], whole[3:3], whole[3:]]))])
    file = GgufFile(path)
    np.testing.assert_array_equal(file.data("t"), whole)
    file.close()


def test_stored_bytes() -> None:
    assert stored_bytes(TensorInfo("v", (32,), TensorType.F32)) == 128
    assert stored_bytes(TensorInfo("m", (3, 64), TensorType.Q8_0)) == 3 * 2 * 34


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([np.zeros((1, 31), np.uint8)], id="too few bytes"),
        pytest.param([np.zeros((1, 33), np.uint8)], id="too many bytes"),
    ],
)
def test_a_tensor_of_another_size_leaves_the_old_file(
    tmp_path: Path, parts: Sequence[NDArray[np.uint8]]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    info = TensorInfo("t", (1, 8), TensorType.F32)
    with pytest.raises(ValueError, match="has 32 bytes, but its parts have 3"):
        write_gguf(path, {}, [PendingTensor(info, lambda: parts)])
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_bytes() == b"old"


def test_a_whole_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    write_gguf(path, {"new": True}, [])
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    assert read(path) == {"new": True}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.gguf: cannot be written: No such file"):
        write_gguf(tmp_path / "missing" / "model.gguf", {}, [])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "text, a number"),
        (b"bytes", "text, a number"),
        ({"a": 1}, "text, a number"),
        (np.zeros((2, 2)), "flat array"),
        (1 << 64, "at most 64 bits"),
        (np.float16(1), "a type that GGUF has"),
        (np.zeros(2, np.complex64), "a type that GGUF has"),
        ([], "an array of one type"),
        ([1, "a"], "an array of one type"),
        ([1, 2.5], "an array of one type"),
    ],
)
def test_metadata_that_gguf_has_no_type_for(tmp_path: Path, value: object, problem: str) -> None:
    with pytest.raises(SettingError, match=f"the.key is .*{problem}"):
        write_gguf(tmp_path / "bad.gguf", {"the.key": value}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alignment", [0, 24, 1 << 21])
def test_alignment_must_be_a_power_of_two(tmp_path: Path, alignment: int) -> None:
    with pytest.raises(SettingError, match=f"general.alignment is {alignment}"):
        write_gguf(tmp_path / "bad.gguf", {"general.alignment": alignment}, [])


@pytest.mark.parametrize("names", [[""], ["a\nb"], ["é" * 32], ["twice", "twice"]])
def test_names_that_ggml_has_no_room_for(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(SettingError, match=r"a tensor's name is .* of at most 63 bytes"):
        write_gguf(tmp_path / "bad.gguf", {}, [pending(name, ramp(4)) for name in names])


@pytest.mark.parametrize("shape", [(), (0, 4), (1, 1, 1, 1, 4)])
def test_shapes_that_gguf_has_no_room_for(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensor = PendingTensor(TensorInfo("t", shape, TensorType.F32), list)
    with pytest.raises(SettingError, match="the shape of t is"):
        write_gguf(tmp_path / "bad.gguf", {}, [tensor])


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    tensor = PendingTensor(TensorInfo("t", (2, 33), TensorType.Q8_0), list)
    with pytest.raises(SettingError, match="multiple of Q8_0's 32"):
        write_gguf(tmp_path / "bad.gguf", {}, [tensor])
