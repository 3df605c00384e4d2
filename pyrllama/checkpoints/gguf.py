"""GGUF checkpoints: the model that a GGUF file's metadata describes.

Rows of queries and keys are stored in interleaved RoPE order already where the architecture
is ``llama``.  Source of the keys: the GGUF specification in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

from reprlib import repr as shown  # cuts a hostile file's endless string short
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.checkpoints.base import Checkpoint
from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.core import ModelConfig, Tensor
from pyrllama.errors import (
    CorruptFileError,
    ModelNotFoundError,
    UnsupportedModelError,
    UnsupportedTypeError,
)
from pyrllama.models.llama import check_tensors
from pyrllama.quants import READABLE, names_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["ARCHITECTURES", "GgufCheckpoint", "GgufFile"]

ARCHITECTURES = ("llama",)
"""Values of ``general.architecture`` that can be run."""
DEFAULT_ROPE_THETA = 10_000.0
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
            self.tensors = self._file.tensors
            self.config = _read_config(self._file)
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

    def read(self, name: str) -> Tensor:
        """Return a view of the tensor's bytes in the file."""
        data = self._file.data(name)
        info = self.tensors[name]
        if info.type not in READABLE:
            raise UnsupportedTypeError(
                self.path,
                f"the tensor {name} is stored as {info.type.name}, which holds no weights; the "
                f"types that do are {names_of(READABLE)}",
            )
        return Tensor(info, data)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system."""
        self._file.release(name)

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()


class _Keys:
    """Typed access to the metadata keys of one architecture."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], architecture: str) -> None:
        self._path = path
        self._metadata = metadata
        self._prefix = architecture + "."

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._metadata

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number; one for each layer must be the same for all."""
        value = self._same_for_all_layers(key, self._get(key, default))
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a real number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        return float(value)

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def unsupported(self, key: str, problem: str) -> UnsupportedModelError:
        """Return the error for a value that asks for what is not implemented."""
        value = self._metadata.get(self._prefix + key)
        return UnsupportedModelError(
            self._path, f"{self._prefix}{key} is {shown(value)}; {problem}"
        )

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(self._prefix + key, default)
        if value is None:
            raise CorruptFileError(
                self._path, f"the metadata lacks the key {self._prefix}{key}; convert it again"
            )
        return value

    def _same_for_all_layers(self, key: str, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        different = np.unique(value)
        if different.size != 1:
            raise self.unsupported(key, "sizes that differ between layers are not implemented")
        return different[0].item()

    def _wrong(self, key: str, value: object, wanted: str) -> CorruptFileError:
        return CorruptFileError(self._path, f"{self._prefix}{key} is {shown(value)}, not {wanted}")


def _read_config(file: GgufFile) -> ModelConfig:
    """Read the model's sizes and constants from its metadata."""
    architecture = _architecture(file)
    keys = _Keys(file.path, file.metadata, architecture)
    dim = keys.size("embedding_length")
    n_heads = keys.size("attention.head_count")
    if n_heads < 1:
        raise CorruptFileError(file.path, f"the model has {n_heads} attention heads")
    head_dim = keys.size("attention.key_length", dim // n_heads)
    _check_features(keys, head_dim)
    return ModelConfig(
        architecture=architecture,
        vocab_size=keys.size("vocab_size", _vocab_size(file)),
        dim=dim,
        n_layers=keys.size("block_count"),
        n_heads=n_heads,
        n_kv_heads=keys.size("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        ffn_dim=keys.size("feed_forward_length"),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("rope.freq_base", DEFAULT_ROPE_THETA),
        context_length=_context_length(keys),
    )


def _context_length(keys: _Keys) -> int:
    """Return the context, or the window of attention where it is shorter.

    Within the first window, sliding attention is the full attention that is implemented.
    """
    context = keys.size("context_length")
    window = keys.size("attention.sliding_window", 0)
    return min(context, window) if window > 0 else context


def _architecture(file: GgufFile) -> str:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CorruptFileError(file.path, "general.architecture does not name the architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            file.path,
            f"the architecture {shown(architecture)} is not implemented; the ones that are: "
            f"{', '.join(ARCHITECTURES)}",
        )
    if not file.tensors:
        raise ModelNotFoundError(
            file.path, "the file holds a vocabulary but no tensors; give a file with weights"
        )
    return architecture


def _vocab_size(file: GgufFile) -> int | None:
    """Return the rows of the token embedding, where the metadata does not count the tokens."""
    embedding = file.tensors.get("token_embd.weight")
    return None if embedding is None else embedding.shape[0]


def _check_features(keys: _Keys, head_dim: int) -> None:
    """Refuse what would compute another model if it were passed over."""
    if keys.size("expert_count", 0) > 0:
        raise keys.unsupported("expert_count", "mixtures of experts are not implemented")
    if keys.size("attention.value_length", head_dim) != head_dim:
        raise keys.unsupported("attention.value_length", f"keys have another size, {head_dim}")
    if keys.size("rope.dimension_count", head_dim) != head_dim:
        raise keys.unsupported(
            "rope.dimension_count", f"turning a part of the {head_dim} of a head is not implemented"
        )
    scaling = keys.text("rope.scaling.type", "linear")
    if scaling == "none":
        return
    # As in llama.cpp, a factor without a type is a linear one, and 0 stands for none.
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if keys.number(key, 0.0) not in {0.0, 1.0}:
            raise keys.unsupported(
                key, f"RoPE scaling of the type {shown(scaling)} is not implemented"
            )
    if scaling != "linear" and "rope.scaling.type" in keys:
        raise keys.unsupported("rope.scaling.type", "this scaling is not implemented")
