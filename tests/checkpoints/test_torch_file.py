"""PyTorch files: what the zip or the folder holds, checked against its bounds."""

from __future__ import annotations

import pickle
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from support.mutations import mutations
from support.torch_writer import (
    PickledTensor,
    torch_pickle,
    torch_records,
    write_torch_file,
    write_unzipped,
    write_zip,
)

from pyrllama.checkpoints.torchfile import TorchFile, starts_like_torch
from pyrllama.errors import (
    CorruptFileError,
    ModelNotFoundError,
    RllamaError,
    UnknownFormatError,
    UnsafePickleError,
    UnsupportedTypeError,
)
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

MATRIX = np.arange(24, dtype=np.float32).reshape(4, 6)
ARRAYS: dict[str, Any] = {
    "matrix": MATRIX,
    "half": np.linspace(-2, 2, 15).astype(np.float16).reshape(3, 5),
    "brain": np.linspace(-3, 3, 8).astype(ml_dtypes.bfloat16).reshape(2, 4),
    "vector": np.arange(7, dtype=np.float32),
}
TYPES = {
    "matrix": TensorType.F32,
    "half": TensorType.F16,
    "brain": TensorType.BF16,
    "vector": TensorType.F32,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def open_records(path: Path, records: dict[str, bytes]) -> TorchFile:
    write_zip(path, records)
    return TorchFile(path)


def open_tensor(path: Path, tensor: PickledTensor, content: bytes = bytes(96)) -> TorchFile:
    return open_records(path, {"data.pkl": torch_pickle({"a": tensor}), "data/0": content})


def check_arrays(file: TorchFile) -> None:
    assert list(file.tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        tensor = file.tensors[name]
        assert (tensor.shape, tensor.type) == (array.shape, TYPES[name])
        rows = 1 if array.ndim == 1 else array.shape[0]
        np.testing.assert_array_equal(tensor.rows(), array.reshape(rows, -1).view(np.uint8))


def test_zip_gives_the_stored_bytes(path: Path) -> None:
    write_torch_file(path, ARRAYS)
    file = TorchFile(path)
    check_arrays(file)
    file.close()


@pytest.mark.parametrize("below", ["", "consolidated", "archive"])
def test_unzipped_folder_gives_the_stored_bytes(tmp_path: Path, below: str) -> None:
    write_unzipped(tmp_path / "consolidated.00" / below, torch_records(ARRAYS))
    file = TorchFile(tmp_path / "consolidated.00")
    check_arrays(file)
    file.close()


def test_zip_without_a_folder_inside_is_read(path: Path) -> None:
    write_zip(path, torch_records(ARRAYS), folder="")
    check_arrays(TorchFile(path))


def test_zip64_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    write_torch_file(path, ARRAYS)
    content = path.read_bytes()
    assert b"PK\x06\x06" in content
    assert b"PK\x06\x07" in content
    check_arrays(TorchFile(path))


def test_zip_with_a_comment_that_looks_like_an_end_is_read(path: Path) -> None:
    write_torch_file(path, ARRAYS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\x05\x06" + b"x" * 40
    check_arrays(TorchFile(path))


def test_views_are_read_only_and_survive_release_and_close(path: Path) -> None:
    write_torch_file(path, ARRAYS)
    file = TorchFile(path)
    rows = file.tensors["matrix"].rows()
    assert not rows.flags.writeable
    file.tensors["matrix"].release()
    file.close()
    np.testing.assert_array_equal(rows.view(np.float32), MATRIX)


def test_unzipped_files_are_mapped_only_in_use(tmp_path: Path) -> None:
    write_unzipped(tmp_path, torch_records({"matrix": MATRIX}))
    tensor = TorchFile(tmp_path).tensors["matrix"]
    rows = tensor.rows()
    tensor.release()
    (tmp_path / "data/0").unlink()
    np.testing.assert_array_equal(rows.view(np.float32), MATRIX)
    with pytest.raises(ModelNotFoundError, match="data/0: there is no such file"):
        tensor.rows()


def test_transposed_and_offset_tensors_are_copied_in_order(path: Path) -> None:
    transposed = PickledTensor("FloatStorage", "0", 24, 0, (6, 4), (1, 6))
    rows = open_tensor(path, transposed, MATRIX.tobytes()).tensors["a"].rows()
    np.testing.assert_array_equal(rows.view(np.float32), MATRIX.T)
    column = PickledTensor("FloatStorage", "0", 24, 5, (4,), (6,))
    rows = open_tensor(path, column, MATRIX.tobytes()).tensors["a"].rows()
    np.testing.assert_array_equal(rows.view(np.float32), MATRIX[:, 5][None])


def test_slice_of_a_storage_is_a_view(path: Path) -> None:
    rows_2_and_3 = PickledTensor("FloatStorage", "0", 24, 12, (2, 6), (6, 1))
    rows = open_tensor(path, rows_2_and_3, MATRIX.tobytes()).tensors["a"].rows()
    np.testing.assert_array_equal(rows.view(np.float32), MATRIX[2:])
    assert not rows.flags.owndata
    assert not rows.flags.writeable


def test_unaligned_tensor_is_copied(path: Path) -> None:
    records = torch_records({"matrix": MATRIX})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"x": b"", **records}.items():
            archive.writestr("odd/" + name, content)
    tensor = TorchFile(path).tensors["matrix"]
    data = tensor.rows()
    assert data.ctypes.data % 4 == 0
    np.testing.assert_array_equal(data.view(np.float32), MATRIX)


def test_tensors_may_share_a_storage(path: Path) -> None:
    write_torch_file(path, {"a": MATRIX, "b": MATRIX})
    tensors = TorchFile(path).tensors
    assert tensors["a"].storage is tensors["b"].storage


def test_a_model_of_the_same_numbers_is_refused(path: Path) -> None:
    write_torch_file(path, dict.fromkeys("abc", MATRIX))
    with pytest.raises(CorruptFileError, match="take 288 bytes of 96 that are stored"):
        TorchFile(path)


@pytest.mark.parametrize(
    "tensor",
    [
        PickledTensor("FloatStorage", "0", 24, 1, (4, 6), (6, 1)),
        PickledTensor("FloatStorage", "0", 24, 24, (1,), (1,)),
        PickledTensor("FloatStorage", "0", 24, 0, (4, 7), (6, 1)),
        PickledTensor("FloatStorage", "0", 24, 0, (4, 6), (7, 1)),
        PickledTensor("FloatStorage", "0", 24, 2**62, (1,), (1,)),
        PickledTensor("FloatStorage", "0", 24, 0, (2**40, 2**40), (0, 0)),
        PickledTensor("FloatStorage", "0", 24, 0, (25,), (0,)),
        PickledTensor("FloatStorage", "0", 24, 0, (2,), (2**62,)),
    ],
)
def test_tensor_outside_of_its_storage_is_refused(path: Path, tensor: PickledTensor) -> None:
    with pytest.raises(CorruptFileError, match=r"the tensor a of shape .* does not fit the 96"):
        open_tensor(path, tensor)


def test_storage_longer_than_its_record_is_refused(path: Path) -> None:
    tensor = PickledTensor("FloatStorage", "0", 25, 0, (4, 6), (6, 1))
    with pytest.raises(CorruptFileError, match="data/0 has 96 bytes, but the pickle says 25"):
        open_tensor(path, tensor)


@pytest.mark.parametrize("key", ["1", "../0", "/etc/passwd", "", "0\n", "x" * 65])
def test_storage_without_a_record_is_refused(path: Path, key: str) -> None:
    tensor = PickledTensor("FloatStorage", key, 24, 0, (4, 6), (6, 1))
    with pytest.raises(CorruptFileError, match=r"no record data/1|a record outside of data/"):
        open_tensor(path, tensor)


@pytest.mark.parametrize("key", ["1", "../data.pkl"])
def test_unzipped_storage_stays_in_its_folder(tmp_path: Path, key: str) -> None:
    tensor = PickledTensor("ByteStorage", key, 1, 0, (1,), (1,))
    write_unzipped(tmp_path, {"data.pkl": torch_pickle({"a": tensor}), "data/0": b"x"})
    with pytest.raises(CorruptFileError, match=r"no record data/1|a record outside of data/"):
        TorchFile(tmp_path)


def test_types_that_weights_cannot_have_are_known_but_have_none(path: Path) -> None:
    write_torch_file(path, {"a": MATRIX.astype(np.float64), "b": np.arange(3)})
    tensors = TorchFile(path).tensors
    assert {name: (t.type, t.stored_as) for name, t in tensors.items()} == {
        "a": (None, "DoubleStorage"),
        "b": (None, "LongStorage"),
    }


def test_unknown_storage_class_is_an_error(path: Path) -> None:
    with pytest.raises(UnsupportedTypeError, match=r"the tensor a .* QUInt4x2Storage"):
        open_tensor(path, PickledTensor("QUInt4x2Storage", "0", 96, 0, (96,), (1,)))


def test_big_endian_file_is_an_error(path: Path) -> None:
    records = torch_records(ARRAYS) | {"byteorder": b"big"}
    with pytest.raises(UnsupportedTypeError, match="big-endian"):
        open_records(path, records)


def test_pickle_that_calls_the_system_is_refused(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    hostile = b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(str(victim)) + 6)
    hostile += f"touch {victim}".encode() + b"\x85R."
    with pytest.raises(UnsafePickleError, match=r"weights\.pth: the pickle calls os\.system"):
        open_records(path, {"data.pkl": hostile})
    assert not victim.exists()


@pytest.mark.parametrize("state", [[1, 2], None, "text", (1,)])
def test_pickle_of_something_else_is_an_error(path: Path, state: object) -> None:
    with pytest.raises(CorruptFileError, match="no dictionary of tensors"):
        open_records(path, {"data.pkl": pickle.dumps(state, 2)})


def test_zip_without_a_pickle_is_no_torch_file(path: Path) -> None:
    with pytest.raises(UnknownFormatError, match=r"0 records named data\.pkl"):
        open_records(path, {"document.xml": b"<a/>"})


def test_zip_with_two_pickles_is_no_torch_file(path: Path) -> None:
    with pytest.raises(UnknownFormatError, match=r"2 records named data\.pkl"):
        open_records(path, {"data.pkl": b"}.", "b/data.pkl": b"}."})


def test_bare_pickle_says_what_to_do(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    assert starts_like_torch(path)
    with pytest.raises(UnknownFormatError, match=r"before version 1\.6.*safetensors"):
        TorchFile(path)


@pytest.mark.parametrize("content", [b"GGUF\x03\x00\x00\x00", b"\x80\x02\x00\x00", b"P", b"text"])
def test_other_files_are_not_torch_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert not starts_like_torch(path)
    with pytest.raises(UnknownFormatError, match="not a PyTorch file"):
        TorchFile(path)


def test_missing_and_empty_files_are_named(path: Path) -> None:
    assert not starts_like_torch(path)
    with pytest.raises(ModelNotFoundError, match=r"weights\.pth"):
        TorchFile(path)
    path.write_bytes(b"")
    with pytest.raises(CorruptFileError, match="empty"):
        TorchFile(path)


def test_folder_without_a_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"no record data\.pkl"):
        TorchFile(tmp_path)


def test_every_tenth_cut_of_a_file_is_an_error(path: Path) -> None:
    write_torch_file(path, ARRAYS)
    content = path.read_bytes()
    for length in range(1, len(content), 10):
        path.write_bytes(content[:length])
        with pytest.raises((CorruptFileError, UnknownFormatError)):
            TorchFile(path)


def test_truncated_zip_is_named_as_truncated(path: Path) -> None:
    write_torch_file(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match="truncated: its directory is missing at the end"):
        TorchFile(path)


def test_damaged_files_give_named_errors_or_tensors(path: Path) -> None:
    write_torch_file(path, ARRAYS)
    for damaged in mutations(path.read_bytes(), 1500):
        path.write_bytes(damaged)
        try:
            file = TorchFile(path)
            for tensor in file.tensors.values():
                tensor.rows()
            file.close()
        except RllamaError as error:
            assert str(path) in str(error)  # noqa: PT017 - success is as good


def test_damaged_directories_give_named_errors_or_tensors(path: Path) -> None:
    write_torch_file(path, {"a": np.arange(2, dtype=np.float32)})
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    for damaged in mutations(content[directory:], 1500, seed=2):
        path.write_bytes(content[:directory] + damaged)
        try:
            TorchFile(path).close()
        except RllamaError as error:
            assert str(path) in str(error)  # noqa: PT017 - success is as good
