"""GGUF checkpoints: the model that a GGUF file's metadata describes.

``gguf_config.py`` reads the metadata.  Rows of queries and keys are permuted where the files of
an architecture have them by halves of a head (``models/rows.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.checkpoints.base import Checkpoint
from pyrllama.checkpoints.experts import group_experts
from pyrllama.checkpoints.gguf_config import architecture_of, read_config
from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.errors import TensorError, UnsupportedTypeError
from pyrllama.models.llama import check_tensors
from pyrllama.models.rows import Pairing, rotated_heads, take_rows, to_neighbours
from pyrllama.quants import READABLE, block_size, names_of
from pyrllama.tensors import Tensor, TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["GgufCheckpoint", "GgufFile"]

SAMPLING_PREFIX = "general.sampling."
SAMPLING_KEYS = {
    "sequence": "samplers",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temp": "temperature",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
"""Keys behind the prefix and what ``Sampling`` calls them; from ggml's ``gguf-py``."""


class GgufCheckpoint(Checkpoint):
    """A model in a GGUF file; see ``GgufFile`` for the errors of the container.

    Raises ``ModelNotFoundError`` for a file that is a vocabulary alone, ``CorruptFileError``
    for missing or senseless keys, ``UnsupportedModelError`` for another architecture or a
    feature that is not implemented, and ``TensorError`` for tensors that do not fit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GgufFile(path)
        try:
            self.format = f"GGUF {self._file.version}"
            self.metadata = self._file.metadata
            self._parts = group_experts(path, self._file.tensors)
            self.tensors = self._stacked()
            self.config = read_config(self._file)
            self._by_halves = architecture_of(self._file).pairing is Pairing.HALVES
            check_tensors(path, self.config, self.tensors)
        except BaseException:
            self._file.close()
            raise

    def sampling_settings(self) -> dict[str, Any]:
        """Return what the keys ``general.sampling.*`` say."""
        return {
            name: self.metadata[SAMPLING_PREFIX + key]
            for key, name in SAMPLING_KEYS.items()
            if SAMPLING_PREFIX + key in self.metadata
        }

    def _stacked(self) -> dict[str, TensorInfo]:
        """Return the tensors of the file, experts that are stored one by one as one tensor."""
        tensors = dict(self._file.tensors)
        for whole, names in self._parts.items():
            infos = [tensors.pop(name) for name in names]
            first = infos[0]
            if any((info.shape, info.type) != (first.shape, first.type) for info in infos):
                raise TensorError(
                    self.path,
                    f"the experts of {whole} have different shapes or types, which is not read; "
                    f"convert the model again",
                )
            tensors[whole] = TensorInfo(whole, (len(infos), *first.shape), first.type)
        return tensors

    def read(self, name: str) -> Tensor:
        """Return a view of the tensor's bytes in the file, or a copy of permuted ones."""
        if name not in self.tensors:
            raise TensorError(self.path, f"there is no tensor {name} in this file")
        info = self.tensors[name]
        if info.type not in READABLE:
            raise UnsupportedTypeError(
                self.path,
                f"the tensor {name} is stored as {info.type.name}, which holds no weights; the "
                f"types that do are {names_of(READABLE)}",
            )
        return Tensor(info, self._rows(name, info))

    def _rows(self, name: str, info: TensorInfo) -> NDArray[np.uint8]:
        if name in self._parts:
            return np.concatenate([self._file.data(part) for part in self._parts[name]])
        data = self._file.data(name)
        n_heads = rotated_heads(name, self.config) if self._by_halves else None
        if n_heads is None:
            return data
        if len(info.shape) == 1 and block_size(info.type) > 1:
            raise UnsupportedTypeError(
                self.path,
                f"the vector {name} is stored as {info.type.name}, whose numbers cannot be "
                f"reordered; convert the model again, with its vectors in F32",
            )
        return take_rows(data, to_neighbours(info.shape[0], n_heads))

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system."""
        for part in self._parts.get(name, (name,)):
            self._file.release(part)

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()
