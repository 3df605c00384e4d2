"""Files of importance matrices: how much the errors of each column of a matrix matter.

An importance matrix holds, for each matrix of a model, the mean square of every input that it
met in a text: an error of a weight costs as much as its input is large.

The file is GGUF with ``general.type`` "imatrix" and, for a tensor NAME, ``NAME.in_sum2``, the
sums of squares ``(1, cols)``, and ``NAME.counts``, how many inputs were summed, ``(1, 1)``.  Those
of experts are ``(experts, cols)`` and ``(experts, 1)``, with zeros for an expert that no input came
to.  A file that was converted from llama.cpp's older form has one row of all experts' sums, each
divided by its own count and times the same one.

Source: ``save_imatrix`` in llama.cpp's ``tools/imatrix/imatrix.cpp`` and ``load_imatrix`` in its
``tools/quantize/quantize.cpp``.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.checkpoints.gguf_metadata import StringArray
from pyrllama.checkpoints.gguf_writer import PendingTensor, write_gguf
from pyrllama.errors import CorruptFileError, TensorError, UnknownFormatError
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.core import InputSquares

GENERAL_TYPE = "imatrix"
SUMS = ".in_sum2"
COUNTS = ".counts"
DATASETS = "imatrix.datasets"
CHUNK_COUNT = "imatrix.chunk_count"
CHUNK_SIZE = "imatrix.chunk_size"
_SMALLEST = 1e-6
"""Importance, as a share of the mean, that a column has at least: a text may never meet it."""


@dataclass(frozen=True, slots=True)
class Importance:
    """The importance of each column of a model's matrices."""

    path: Path
    columns: Mapping[str, NDArray[np.float32]]
    """Mean squares by matrix, ``(cols,)``, of experts ``(experts, cols)`` or all in one row."""
    datasets: tuple[str, ...]
    chunks: int

    def of(self, info: TensorInfo) -> NDArray[np.float32] | None:
        """Return the importance of a tensor's columns; None where it is unknown.

        It is ``(cols,)``, of experts ``(experts, cols)``, and over zero everywhere.  Raises
        ``TensorError`` if it is for rows of another length or for other experts.
        """
        means = self.columns.get(info.name)
        if means is None:
            return None
        shape = (*info.shape[:-2], info.shape[-1])
        if means.ndim == 1 and means.size == math.prod(shape):
            means = means.reshape(shape)
        if means.shape != shape:
            raise TensorError(
                self.path,
                f"the importance of {info.name} is for {_counted(means.shape)}, but the tensor has "
                f"{_counted(shape)}; it was collected on another model",
            )
        return _over_zero(means)

    @property
    def metadata(self) -> dict[str, Any]:
        """What a file that was quantised with it says of it."""
        return {
            "quantize.imatrix.file": self.path.name,
            **({"quantize.imatrix.dataset": self.datasets[0]} if self.datasets else {}),
            "quantize.imatrix.entries_count": len(self.columns),
            "quantize.imatrix.chunks_count": self.chunks,
        }


def read_importance(path: Path) -> Importance:
    """Read an importance matrix that llama.cpp's ``llama-imatrix`` or this program wrote.

    Raises ``UnknownFormatError`` for another file, and ``CorruptFileError`` for one that
    contradicts itself or holds numbers that are not finite.
    """
    try:
        file = GgufFile(path)
    except UnknownFormatError:
        raise UnknownFormatError(
            path,
            "this is no importance matrix in GGUF; `rllama imatrix` collects one, and of the older "
            "form llama.cpp's `llama-imatrix --in-file OLD --output-format gguf -o NEW` makes one",
        ) from None
    with closing(file):
        if file.metadata.get("general.type") != GENERAL_TYPE:
            raise UnknownFormatError(path, "this GGUF file is no importance matrix, but a model")
        names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
        chunks, datasets = file.metadata.get(CHUNK_COUNT, 0), file.metadata.get(DATASETS)
        return Importance(
            path=path,
            columns={name: _means(file, name) for name in names},
            datasets=tuple(datasets) if isinstance(datasets, StringArray) else (),
            chunks=chunks if isinstance(chunks, int) else 0,
        )


def write_importance(
    path: Path,
    squares: InputSquares,
    n_inputs: int,
    *,
    dataset: str,
    chunks: int,
    chunk_size: int,
) -> None:
    """Write an importance matrix in llama.cpp's GGUF form.

    ``n_inputs`` is how many inputs every matrix had but those of experts; ``dataset`` names the
    text, which was ``chunks`` times ``chunk_size`` tokens.  Raises ``CheckpointError`` when the
    file cannot be written.
    """
    metadata = {
        "general.type": GENERAL_TYPE,
        DATASETS: [dataset],
        CHUNK_COUNT: chunks,
        CHUNK_SIZE: chunk_size,
    }
    tensors = []
    for name in sorted(squares.sums):
        tokens = squares.tokens.get(name)
        counts = np.array([n_inputs]) if tokens is None else tokens[:, None]
        tensors.append(_pending(name + SUMS, squares.sums[name]))
        tensors.append(_pending(name + COUNTS, counts))
    write_gguf(path, metadata, tensors)


def _pending(name: str, values: NDArray[Any]) -> PendingTensor:
    stored = values.astype("<f4", order="C")
    info = TensorInfo(name, stored.shape, TensorType.F32)
    return PendingTensor(info, lambda: iter([stored.view(np.uint8)]))


def _means(file: GgufFile, name: str) -> NDArray[np.float32]:
    """Return the mean squares of a matrix's inputs, 1 for experts that had none."""
    sums, counts = _floats(file, name + SUMS), _floats(file, name + COUNTS)
    if counts.size > 1 and counts.size != len(sums):
        raise CorruptFileError(
            file.path,
            f"the importance of {name} has {len(sums)} rows of sums, but {counts.size} counts; "
            f"collect it again",
        )
    counts = counts.reshape(-1, 1)
    impossible = not np.isfinite(sums).all() or (sums < 0).any()
    if impossible or not ((counts >= 0) & (counts < np.inf)).all():
        raise CorruptFileError(file.path, f"the importance of {name} has impossible numbers")
    means = np.ones(sums.shape)
    np.divide(sums, counts, out=means, where=counts > 0, dtype=np.float64)
    if means.max() > np.finfo(np.float32).max:
        raise CorruptFileError(file.path, f"the importance of {name} is beyond all numbers")
    return (means if counts.size > 1 else means.reshape(-1)).astype(np.float32)


def _over_zero(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Raise what an expert, or a matrix, never met to a little; all alike where that is all."""
    mean = means.mean(axis=-1, keepdims=True, dtype=np.float64)
    return np.where(mean > 0, np.maximum(means, _SMALLEST * mean), 1.0).astype(np.float32)


def _counted(shape: tuple[int, ...]) -> str:
    *experts, cols = shape
    return f"{experts[0]} experts of {cols} columns" if experts else f"{cols} columns"


def _floats(file: GgufFile, name: str) -> NDArray[np.float32]:
    info = file.tensors.get(name)
    if info is None or info.type is not TensorType.F32:
        raise CorruptFileError(file.path, f"lacks the tensor {name} in F32; collect it again")
    return file.data(name).view("<f4").astype(np.float32)
