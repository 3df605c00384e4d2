"""Hugging Face's ``config.json``: the sizes and constants of a model.

Source of the fields and their defaults: ``configuration_llama.py`` of
huggingface/transformers, versions 4 and 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.core import ModelConfig, RopeScaling
from pyrllama.errors import CorruptFileError, UnsupportedModelError

if TYPE_CHECKING:
    from pyrllama.checkpoints.json_file import Fields

ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM")
"""What can be run; the second spelling is that of the first conversions, of March 2023."""
MODEL_TYPE = "llama"
DEFAULT_THETA = 10_000.0


def read_config(config: Fields) -> ModelConfig:
    """Return the config that the fields give.

    Raises ``UnsupportedModelError`` for what plain LLaMA does not have and
    ``CorruptFileError`` for fields that are missing or senseless.
    """
    _check_architecture(config)
    _check_features(config)
    dim, n_heads = config.size("hidden_size"), config.size("num_attention_heads")
    if not config.has("head_dim") and dim % n_heads:
        raise CorruptFileError(
            config.path, f"hidden_size is {dim}, no multiple of num_attention_heads, {n_heads}"
        )
    theta, scaling = _rope(config)
    return ModelConfig(
        architecture=MODEL_TYPE,
        vocab_size=config.size("vocab_size"),
        dim=dim,
        n_layers=config.size("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=config.size("num_key_value_heads", n_heads),
        head_dim=config.size("head_dim", dim // n_heads),
        ffn_dim=config.size("intermediate_size"),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        context_length=config.size("max_position_embeddings", 2048),
        rope_scaling=scaling,
    )


def _check_architecture(config: Fields) -> None:
    named = config.values.get("architectures")
    found = named[0] if isinstance(named, list) and named else config.values.get("model_type")
    model_type = config.values.get("model_type", MODEL_TYPE)
    if found not in (*ARCHITECTURES, MODEL_TYPE) or model_type != MODEL_TYPE:
        raise UnsupportedModelError(
            config.path,
            f"the architecture is {str(found)[:80]}, but what can be run is {ARCHITECTURES[0]}",
        )


def _check_features(config: Fields) -> None:
    """Raise ``UnsupportedModelError`` for features that would make another computation."""
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key):
            raise UnsupportedModelError(config.path, f"{key} is true, but biases are not run yet")
    if config.has("quantization_config"):
        raise UnsupportedModelError(
            config.path,
            "has a quantization_config; fetch the weights before quantisation, or as GGUF",
        )
    activation = config.text("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModelError(config.path, f"hidden_act is {activation}, not silu")
    if config.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError(
            config.path, "partial_rotary_factor is not 1: heads must be turned whole"
        )


def _rope(config: Fields) -> tuple[float, RopeScaling | None]:
    """Return the base of RoPE's frequencies and their scaling.

    Both are in ``rope_parameters`` since transformers 5; before, the base was a field of its
    own and the scaling in ``rope_scaling``, whose kind was first called ``type``.
    """
    key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    rope = config.fields(key)
    theta = rope.number("rope_theta", config.number("rope_theta", DEFAULT_THETA))
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UnsupportedModelError(
            config.path, f"{key} is of the type {kind}, but what can be run is default and llama3"
        )
    return theta, RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_context=rope.size("original_max_position_embeddings"),
    )
