"""Files of importance matrices: how much the errors of each column of a matrix matter.

An importance matrix holds, for each matrix of a model, the mean square of every input that it
met in a text: an error of a weight costs as much as its input is large.

The file is GGUF with ``general.type`` "imatrix" and, for a tensor NAME, ``NAME.in_sum2``, the
sums of squares ``(1, cols)``, and ``NAME.counts``, how many inputs were summed.

Source: ``save_imatrix`` in llama.cpp's ``tools/imatrix/imatrix.cpp``.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.checkpoints.gguf_metadata import StringArray
from pyrllama.checkpoints.gguf_writer import PendingTensor, write_gguf
from pyrllama.errors import CheckpointError, CorruptFileError, TensorError, UnknownFormatError
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

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
    """The importance of each column of a model's matrices, by their names."""

    path: Path
    columns: Mapping[str, NDArray[np.float32]]
    datasets: tuple[str, ...]
    chunks: int

    def of(self, info: TensorInfo) -> NDArray[np.float32] | None:
        """Return the importance of a matrix's columns, ``(cols,)``; None where it is unknown.

        Raises ``TensorError`` if it is for rows of another length.
        """
        columns = self.columns.get(info.name)
        if columns is not None and columns.size != info.shape[-1]:
            raise TensorError(
                self.path,
                f"the importance of {info.name} is for {columns.size} columns, but the tensor has "
                f"{info.shape[-1]}; it was collected on another model",
            )
        return columns

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
            columns={name: _columns(file, name) for name in names},
            datasets=tuple(datasets) if isinstance(datasets, StringArray) else (),
            chunks=chunks if isinstance(chunks, int) else 0,
        )


def write_importance(
    path: Path,
    sums: Mapping[str, NDArray[np.float64]],
    n_inputs: int,
    *,
    dataset: str,
    chunks: int,
    chunk_size: int,
) -> None:
    """Write an importance matrix in llama.cpp's GGUF form.

    ``sums`` are the sums of squares of ``n_inputs`` inputs by matrix, ``(cols,)``; ``dataset``
    names the text, which was ``chunks`` times ``chunk_size`` tokens.  Raises
    ``CheckpointError`` when the file cannot be written.
    """
    metadata = {
        "general.type": GENERAL_TYPE,
        DATASETS: [dataset],
        CHUNK_COUNT: chunks,
        CHUNK_SIZE: chunk_size,
    }
    tensors = []
    for name in sorted(sums):
        tensors.append(_pending(name + SUMS, sums[name]))
        tensors.append(_pending(name + COUNTS, np.array([n_inputs])))
    write_gguf(path, metadata, tensors)


def _pending(name: str, values: NDArray[Any]) -> PendingTensor:
    stored = values.astype("<f4")
    info = TensorInfo(name, stored.shape, TensorType.F32)
    return PendingTensor(info, lambda: iter([stored.view(np.uint8)]))


def _columns(file: GgufFile, name: str) -> NDArray[np.float32]:
    """Return the mean squares of a matrix's inputs, none of them quite zero."""
    sums, counts = _floats(file, name + SUMS), _floats(file, name + COUNTS)
    if len(sums) != 1 or counts.size != 1:
        raise CheckpointError(
            file.path, f"{name} has the importance of several experts, which cannot be used yet"
        )
    count = float(counts[0, 0])
    if not np.isfinite(sums).all() or (sums < 0).any() or not 0 <= count < np.inf:
        raise CorruptFileError(file.path, f"the importance of {name} has impossible numbers")
    means = sums[0].astype(np.float64) / count if count else np.ones(sums[0].shape)
    mean = float(means.mean())
    columns = np.maximum(means, _SMALLEST * mean) if mean > 0 else np.ones_like(means)
    if columns.max() > np.finfo(np.float32).max:
        raise CorruptFileError(file.path, f"the importance of {name} is beyond all numbers")
    return columns.astype(np.float32)


def _floats(file: GgufFile, name: str) -> NDArray[np.float32]:
    info = file.tensors.get(name)
    if info is None or info.type is not TensorType.F32:
        raise CorruptFileError(file.path, f"lacks the tensor {name} in F32; collect it again")
    return file.data(name).view("<f4").astype(np.float32)
