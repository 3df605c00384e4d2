"""Hugging Face's ``config.json``: the sizes and constants of a model.

Source of the fields and their defaults: the ``configuration_*.py`` of the models in
huggingface/transformers, versions 4 and 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.checkpoints.huggingface_rope import read_rope
from pyrllama.errors import CorruptFileError, UnsupportedModelError
from pyrllama.model_config import Experts, ModelConfig
from pyrllama.models.families import HUGGING_FACE, Window

if TYPE_CHECKING:
    from pyrllama.checkpoints.json_file import Fields
    from pyrllama.models.families import HuggingFaceModel

LLAMA = HUGGING_FACE[0]
DEFAULT_WINDOW = 4096
"""Of Mistral, where the field is not there; null means none."""


def model_of(config: Fields) -> HuggingFaceModel:
    """Return the model class that the fields name; ``UnsupportedModelError`` for another."""
    named = config.values.get("architectures")
    model_type = config.values.get("model_type")
    found = named[0] if isinstance(named, list) and named else model_type
    for model in HUGGING_FACE:
        if found in (*model.classes, model.model_type) and model_type in (None, model.model_type):
            return model
    running = ", ".join(model.classes[0] for model in HUGGING_FACE)
    raise UnsupportedModelError(
        config.path,
        f"the architecture is {str(found)[:80]} of the model_type {str(model_type)[:80]}, but "
        f"what can be run is {running}",
    )


def read_config(config: Fields) -> ModelConfig:
    """Return the config that the fields give.

    Raises ``UnsupportedModelError`` for what the architecture does not have here and
    ``CorruptFileError`` for fields that are missing or senseless.
    """
    model = model_of(config)
    _check_features(config, model)
    dim, n_heads = config.size("hidden_size"), config.size("num_attention_heads")
    if not config.has("head_dim") and dim % n_heads:
        raise CorruptFileError(
            config.path, f"hidden_size is {dim}, no multiple of num_attention_heads, {n_heads}"
        )
    # Each class has defaults of its own, and files rely on LLaMA's alone.
    is_llama = model is LLAMA
    max_positions = config.size("max_position_embeddings", 2048 if is_llama else None)
    rope = read_rope(config, max_positions)
    return ModelConfig(
        architecture=model.architecture.name,
        vocab_size=config.size("vocab_size"),
        dim=dim,
        n_layers=config.size("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=config.size("num_key_value_heads", n_heads if is_llama else None),
        head_dim=config.size("head_dim", dim // n_heads),
        ffn_dim=config.size(model.experts.size if model.experts else "intermediate_size"),
        norm_eps=config.number("rms_norm_eps", 1e-6 if is_llama else None),
        rope_theta=rope.theta,
        context_length=rope.context_length,
        rope_scaling=rope.scaling,
        sliding_window=_window(config, model),
        attention_bias=model.architecture.attention_bias,
        qk_norm=model.architecture.qk_norm,
        experts=_experts(config, model),
    )


def _check_features(config: Fields, model: HuggingFaceModel) -> None:
    """Raise ``UnsupportedModelError`` for features that would make another computation."""
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key) and not (key == "attention_bias" and model.architecture.attention_bias):
            raise UnsupportedModelError(
                config.path, f"{key} is true, but the biases that it adds are not run yet"
            )
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


def _window(config: Fields, model: HuggingFaceModel) -> int | None:
    """Return over how many positions attention looks back, in all layers; None for no window."""
    match model.window:
        case Window.NEVER:
            return None
        case Window.ALWAYS:
            return _stated_window(config, DEFAULT_WINDOW)
        case Window.IF_STATED:
            return _stated_window(config, None)
        case Window.IF_USED | Window.IF_USED_IN_ALL:
            return _window_where_used(config, model)


def _stated_window(config: Fields, default: int | None) -> int | None:
    if "sliding_window" not in config.values:
        return default
    return config.size("sliding_window") if config.has("sliding_window") else None


def _window_where_used(config: Fields, model: HuggingFaceModel) -> int | None:
    if not (config.flag("use_sliding_window") and config.has("sliding_window")):
        return None
    n_layers = config.size("num_hidden_layers")
    kinds = config.values.get("layer_types")
    if isinstance(kinds, list):
        n_windowed = kinds.count("sliding_attention")
    elif model.window is Window.IF_USED_IN_ALL or config.values.get("max_window_layers") == 0:
        n_windowed = n_layers
    else:
        n_windowed = max(n_layers - config.size("max_window_layers"), 0)
    if n_windowed not in (0, n_layers):
        raise UnsupportedModelError(
            config.path,
            f"{n_windowed} of {n_layers} layers have a sliding window; all or none can be run",
        )
    return config.size("sliding_window") if n_windowed else None


def _experts(config: Fields, model: HuggingFaceModel) -> Experts | None:
    if model.experts is None:
        return None
    dense = config.values.get("mlp_only_layers") or config.size("decoder_sparse_step", 1) != 1
    if dense:
        raise UnsupportedModelError(
            config.path, "some layers have no experts (mlp_only_layers, decoder_sparse_step)"
        )
    count = next(filter(config.has, model.experts.count), model.experts.count[0])
    return Experts(
        count=config.size(count),
        used=config.size("num_experts_per_tok"),
        normalised=model.experts.always_normalised or config.flag("norm_topk_prob"),
    )
