"""A model's config as the metadata of GGUF files; ``gguf_config.py`` reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrllama.errors import SettingError
from pyrllama.model_config import DynamicRope, LinearRope, YarnRope
from pyrllama.models.families import ARCHITECTURES
from pyrllama.models.rope import default_attention_factor

if TYPE_CHECKING:
    from pyrllama.model_config import ModelConfig, RopeScaling


def config_keys(config: ModelConfig) -> dict[str, Any]:
    """Return the keys that begin with the architecture's name.

    Llama 3.1's RoPE scaling is no key but a tensor.  Raises ``SettingError`` for a scaling that
    GGUF cannot express.
    """
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    if config.sliding_window is not None:
        keys["attention.sliding_window"] = config.sliding_window
    if config.experts is not None:
        keys["expert_count"] = config.experts.count
        keys["expert_used_count"] = config.experts.used
        keys["expert_weights_norm"] = config.experts.normalised
        expert_size = ARCHITECTURES[config.architecture].expert_size
        keys |= {expert_size: config.ffn_dim} if expert_size else {}
    keys |= {f"rope.scaling.{key}": value for key, value in _scaling(config.rope_scaling).items()}
    return {f"{config.architecture}.{key}": value for key, value in keys.items()}


def _scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    match scaling:
        case LinearRope():
            return {"type": "linear", "factor": scaling.factor}
        case YarnRope(truncate=True):
            usual = default_attention_factor(scaling.factor)
            return {
                "type": "yarn",
                "factor": scaling.factor,
                "original_context_length": scaling.original_context,
                "attn_factor": scaling.attention_factor / usual,
                "yarn_beta_fast": scaling.beta_fast,
                "yarn_beta_slow": scaling.beta_slow,
            }
        case DynamicRope() | YarnRope():
            raise SettingError(
                "the RoPE scaling", scaling.kind, "linear, llama3, or yarn on whole pairs in GGUF"
            )
        case _:
            return {}
