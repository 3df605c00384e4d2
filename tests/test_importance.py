"""Importance matrices in llama.cpp's GGUF form."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.checkpoints.gguf_writer import PendingTensor, write_gguf
from pyrllama.core import InputSquares
from pyrllama.errors import CorruptFileError, TensorError, UnknownFormatError
from pyrllama.importance import read_importance, write_importance
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NAME = "blk.0.attn_q.weight"
MATRIX = TensorInfo(NAME, (4, 2), TensorType.F16)
EXPERTS = TensorInfo(NAME, (3, 5, 2), TensorType.F16)
KEYS = {
    "general.type": "imatrix",
    "imatrix.datasets": ["wiki.train.raw"],
    "imatrix.chunk_count": 7,
    "imatrix.chunk_size": 512,
}


def write(path: Path, tensors: dict[str, Any], **keys: Any) -> Path:
    pending = []
    for name, values in tensors.items():
        array: NDArray[np.float32] = np.array(values, np.float32, ndmin=2)
        info = TensorInfo(name, array.shape, TensorType.F32)
        pending.append(PendingTensor(info, partial(list, [array.view(np.uint8)])))
    write_gguf(path, KEYS | keys, pending)
    return path


def one(sums: Any, counts: Any = 4.0) -> dict[str, Any]:
    return {f"{NAME}.in_sum2": sums, f"{NAME}.counts": counts}


def test_importance_is_the_mean_square_of_each_input(tmp_path: Path) -> None:
    read = read_importance(write(tmp_path / "i.gguf", one([8.0, 4.0, 2.0, 2.0])))
    assert read.columns[NAME].tolist() == [2.0, 1.0, 0.5, 0.5]
    assert read.datasets == ("wiki.train.raw",)
    assert read.metadata == {
        "quantize.imatrix.file": "i.gguf",
        "quantize.imatrix.dataset": "wiki.train.raw",
        "quantize.imatrix.entries_count": 1,
        "quantize.imatrix.chunks_count": 7,
    }


def test_inputs_that_never_came_count_a_little(tmp_path: Path) -> None:
    columns = read_importance(write(tmp_path / "i", one([8.0, 0.0]))).of(MATRIX)
    assert columns is not None
    assert columns.tolist() == [2.0, pytest.approx(1e-6)]


@pytest.mark.parametrize(("sums", "count"), [([0.0, 0.0], 4.0), ([3.0, 5.0], 0.0)])
def test_what_was_never_met_is_all_alike(tmp_path: Path, sums: list[float], count: float) -> None:
    columns = read_importance(write(tmp_path / "i", one(sums, count))).of(MATRIX)
    assert columns is not None
    assert columns.tolist() == [1, 1]


def test_another_models_importance(tmp_path: Path) -> None:
    read = read_importance(write(tmp_path / "i", one([1.0, 2.0])))
    assert read.of(TensorInfo("output.weight", (4, 2), TensorType.F16)) is None
    columns = read.of(TensorInfo(NAME, (4, 2), TensorType.F16))
    assert columns is not None
    with pytest.raises(TensorError, match=r"is for 2 columns, but the tensor has 3"):
        read.of(TensorInfo(NAME, (4, 3), TensorType.F16))


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (one([1.0, np.nan]), "impossible numbers"),
        (one([1.0, -1.0]), "impossible numbers"),
        (one([1.0, np.inf]), "impossible numbers"),
        (one([1.0, 2.0], -1.0), "impossible numbers"),
        (one([1.0, 2.0], np.nan), "impossible numbers"),
        (one([1.0, 3e38], 1e-9), "beyond all numbers"),
        (one([[1.0, 2.0], [3.0, -1.0]], [[1.0], [2.0]]), "impossible numbers"),
        (one([[1.0, 2.0], [3.0, 4.0]], [[1.0], [-2.0]]), "impossible numbers"),
        (one([[1.0, 2.0], [3.0, 3e38]], [[1.0], [0.5]]), "beyond all numbers"),
        (one([[1.0, 2.0], [3.0, 4.0]], [1.0, 1.0, 1.0]), "has 2 rows of sums, but 3 counts"),
        (one([1.0, 2.0, 3.0, 4.0], [1.0, 1.0]), "has 1 rows of sums, but 2 counts"),
        ({f"{NAME}.in_sum2": [1.0]}, r"lacks the tensor blk.0.attn_q.weight.counts"),
    ],
)
def test_damage_is_named(tmp_path: Path, tensors: dict[str, Any], problem: str) -> None:
    with pytest.raises(CorruptFileError, match=problem):
        read_importance(write(tmp_path / "i", tensors))


@pytest.mark.parametrize("datasets", [7, 0.5, "a text", [1, 2]])
def test_datasets_that_are_no_names(tmp_path: Path, datasets: Any) -> None:
    path = write(tmp_path / "i", one([1.0]), **{"imatrix.datasets": datasets})
    assert read_importance(path).datasets == ()


def test_each_expert_has_the_mean_of_its_own_inputs(tmp_path: Path) -> None:
    sums = [[8.0, 4.0], [3.0, 5.0], [0.0, 6.0]]
    read = read_importance(write(tmp_path / "i", one(sums, [[4.0], [0.0], [3.0]])))
    columns = read.of(EXPERTS)
    assert columns is not None
    # The second expert had no input, the third none that was not zero in its first column.
    assert columns.tolist() == [[2.0, 1.0], [1.0, 1.0], [pytest.approx(1e-6), 2.0]]


def test_a_converted_file_has_all_experts_in_one_row(tmp_path: Path) -> None:
    read = read_importance(write(tmp_path / "i", one([8.0, 4.0, 4.0, 4.0, 0.0, 6e-9], 4.0)))
    columns = read.of(EXPERTS)
    assert columns is not None
    assert columns.tolist() == [[2.0, 1.0], [1.0, 1.0], pytest.approx([7.5e-16, 1.5e-9])]


def test_sums_of_experts_with_one_count(tmp_path: Path) -> None:
    path = write(tmp_path / "i", one([[8.0, 4.0], [4.0, 4.0], [2.0, 2.0]], 4.0))
    columns = read_importance(path).of(EXPERTS)
    assert columns is not None
    assert columns.tolist() == [[2.0, 1.0], [1.0, 1.0], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("sums", "shape", "problem"),
    [
        (np.ones((4, 2)), (3, 5, 2), "4 experts of 2 columns, but the tensor has 3 experts of 2"),
        (np.ones((3, 4)), (3, 5, 2), "3 experts of 4 columns, but the tensor has 3 experts of 2"),
        (np.ones((3, 2)), (5, 6), "3 experts of 2 columns, but the tensor has 6 columns"),
        (np.ones((1, 2)), (3, 5, 2), "is for 2 columns, but the tensor has 3 experts of 2 columns"),
        (np.ones((1, 6)), (5, 2), "is for 6 columns, but the tensor has 2 columns"),
    ],
)
def test_other_experts(
    tmp_path: Path, sums: NDArray[np.float64], shape: tuple[int, ...], problem: str
) -> None:
    read = read_importance(write(tmp_path / "i", one(sums, np.ones((len(sums), 1)))))
    with pytest.raises(TensorError, match=f"{problem}.*; it was collected on another model"):
        read.of(TensorInfo(NAME, shape, TensorType.F16))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    sums = {NAME: rng.uniform(1, 9, (3, 2)), "blk.0.attn_k.weight": rng.uniform(1, 9, 5)}
    squares = InputSquares(sums, {NAME: np.array([4, 0, 7])})
    path = tmp_path / "i"
    write_importance(path, squares, 9, dataset="t", chunks=1, chunk_size=9)
    file = GgufFile(path)
    assert {name: info.shape for name, info in file.tensors.items()} == {
        "blk.0.attn_k.weight.in_sum2": (5,),
        "blk.0.attn_k.weight.counts": (1,),
        f"{NAME}.in_sum2": (3, 2),
        f"{NAME}.counts": (3, 1),
    }
    assert file.data(f"{NAME}.counts").view("<f4").tolist() == [[4.0], [0.0], [7.0]]
    file.close()
    means = read_importance(path).columns
    expected = sums[NAME] / [[4], [np.inf], [7]] + [[0], [1], [0]]
    np.testing.assert_allclose(means[NAME], expected, rtol=1e-6)
    np.testing.assert_allclose(means["blk.0.attn_k.weight"], sums["blk.0.attn_k.weight"] / 9, 1e-6)


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    path = write(tmp_path / "i", one([1.0]), **{"general.type": "model"})
    with pytest.raises(UnknownFormatError, match="but a model"):
        read_importance(path)


def test_the_older_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(b"\x01\x00\x00\x00\x13\x00\x00\x00blk.0.attn_q.weight")
    with pytest.raises(UnknownFormatError, match="--output-format gguf"):
        read_importance(path)
