"""The metadata of GGUF files as a model's config.

Source of the keys: the GGUF specification in ggml's ``docs/gguf.md``, and ``llama-arch.cpp``,
``llama-model.cpp`` and ``llama-context.cpp`` of llama.cpp for what they mean.
"""

from __future__ import annotations

import math
from reprlib import repr as shown  # cuts a hostile file's endless string short
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.errors import CorruptFileError, ModelNotFoundError, UnsupportedModelError
from pyrllama.model_config import Experts, LinearRope, ModelConfig, YarnRope
from pyrllama.models.families import ARCHITECTURES
from pyrllama.models.rope import default_attention_factor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pyrllama.checkpoints.gguf_file import GgufFile
    from pyrllama.model_config import RopeScaling
    from pyrllama.models.families import Architecture

DEFAULT_ROPE_THETA = 10_000.0
_MOST_STRETCHED = 2.0**20
"""Factor beyond which a context is too long for any model."""
SOFTMAX = 1
"""``expert_gating_func`` of routers whose probabilities are a softmax."""


def architecture_of(file: GgufFile) -> Architecture:
    """Return the architecture that the file names.

    Raises ``UnsupportedModelError`` for one that does not run, and ``ModelNotFoundError`` for a
    file without tensors.
    """
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise CorruptFileError(file.path, "general.architecture does not name the architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            file.path,
            f"the architecture {shown(name)} is not implemented; the ones that are: "
            f"{', '.join(ARCHITECTURES)}",
        )
    if not file.tensors:
        raise ModelNotFoundError(
            file.path, "the file holds a vocabulary but no tensors; give a file with weights"
        )
    return ARCHITECTURES[name]


def read_config(file: GgufFile) -> ModelConfig:
    """Return the sizes and constants that the metadata states; see ``GgufCheckpoint``."""
    architecture = architecture_of(file)
    keys = Keys(file.path, file.metadata, architecture.name)
    dim = keys.size("embedding_length")
    n_heads = keys.size("attention.head_count")
    if n_heads < 1:
        raise CorruptFileError(file.path, f"the model has {n_heads} attention heads")
    head_dim = keys.size("attention.key_length", dim // n_heads)
    _check_features(keys, head_dim)
    context_length, scaling = _context(keys)
    return ModelConfig(
        architecture=architecture.name,
        vocab_size=keys.size("vocab_size", _vocab_size(file)),
        dim=dim,
        n_layers=keys.size("block_count"),
        n_heads=n_heads,
        n_kv_heads=keys.size("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        ffn_dim=keys.size(architecture.expert_size or "feed_forward_length"),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("rope.freq_base", DEFAULT_ROPE_THETA),
        context_length=context_length,
        rope_scaling=scaling,
        sliding_window=keys.size("attention.sliding_window", 0) or None,
        attention_bias=architecture.attention_bias,
        qk_norm=architecture.qk_norm,
        experts=_experts(keys, architecture),
    )


def _vocab_size(file: GgufFile) -> int | None:
    """Return the rows of the token embedding, where the metadata does not count the tokens."""
    embedding = file.tensors.get("token_embd.weight")
    return None if embedding is None else embedding.shape[0]


def _experts(keys: Keys, architecture: Architecture) -> Experts | None:
    count = keys.size("expert_count", None if architecture.expert_size else 0)
    if count == 0 and not architecture.expert_size:
        return None
    return Experts(
        count=count,
        used=keys.size("expert_used_count"),
        normalised=keys.flag("expert_weights_norm", default=True),
    )


def _context(keys: Keys) -> tuple[int, RopeScaling | None]:
    """Return the context, in tokens, and the scaling of RoPE.

    As in llama.cpp, a factor without a type is a linear one, and 0 stands for none.
    """
    context, kind = keys.size("context_length"), keys.text("rope.scaling.type", "linear")
    if kind == "none":
        return context, None
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0))
    if kind == "linear":
        return context, LinearRope(factor) if factor not in {0.0, 1.0} else None
    if kind != "yarn":
        raise keys.unsupported(
            "rope.scaling.type", "the kinds of scaling that are implemented: none, linear, yarn"
        )
    if factor in {0.0, 1.0}:
        return context, None
    original = keys.size("rope.scaling.original_context_length", context)
    scaling = YarnRope(
        factor=factor,
        original_context=original,
        attention_factor=_attention_factor(keys, factor),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
    )
    if not factor > 1.0:  # nor for a NaN, which is refused with the other constants
        return context, scaling
    return max(context, round(original * min(factor, _MOST_STRETCHED))), scaling


def _attention_factor(keys: Keys, factor: float) -> float:
    """Return by what YaRN multiplies cosines and sines."""
    usual = default_attention_factor(factor)
    less = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    if not 0.0 <= less < math.inf:
        raise keys.wrong("rope.scaling.yarn_log_multiplier", less, "a finite number from 0 upwards")
    if less and factor > 1.0:
        usual /= 0.1 * less * math.log(factor) + 1.0
    return usual * keys.number("rope.scaling.attn_factor", 1.0)


def _check_features(keys: Keys, head_dim: int) -> None:
    """Refuse what would compute another model if it were passed over."""
    if keys.size("attention.value_length", head_dim) != head_dim:
        raise keys.unsupported("attention.value_length", f"keys have another size, {head_dim}")
    if keys.size("rope.dimension_count", head_dim) != head_dim:
        raise keys.unsupported(
            "rope.dimension_count", f"turning a part of the {head_dim} of a head is not implemented"
        )
    for key in ("expert_shared_count", "leading_dense_block_count", "expert_group_count"):
        if keys.size(key, 0) > 0:
            raise keys.unsupported(key, "such mixtures of experts are not implemented")
    if keys.number("expert_weights_scale", 0.0) not in {0.0, 1.0}:
        raise keys.unsupported("expert_weights_scale", "scaling experts is not implemented")
    if keys.size("expert_gating_func", SOFTMAX) not in {0, SOFTMAX}:
        raise keys.unsupported("expert_gating_func", "routers have a softmax here")


class Keys:
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
            raise self.wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a real number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
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

    def wrong(self, key: str, value: object, wanted: str) -> CorruptFileError:
        """Return the error for a value that is not what it must be."""
        return CorruptFileError(self._path, f"{self._prefix}{key} is {shown(value)}, not {wanted}")
