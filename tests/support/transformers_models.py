"""The tiny models that transformers computed logits of, read without the package's own readers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from pyrllama.model_config import (
    DynamicRope,
    Experts,
    LinearRope,
    Llama3Rope,
    ModelConfig,
    RopeScaling,
    YarnRope,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from support.tiny_models import Weights

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FIXTURE_FOLDERS = sorted(path.parent for path in FIXTURES.glob("*/config.json"))
"""Hugging Face folders, each with transformers' own logits; see ``make_fixtures.py``."""
LONG_FOLDERS = [path for path in FIXTURE_FOLDERS if (path / "expected_long.npz").exists()]
"""Those with a long sequence too."""

ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""GGUF's names by ``model_type``, where they are not ``llama``."""
STRETCHED = 8
"""The factor of every fixture whose scaling multiplies the context."""


@dataclasses.dataclass(frozen=True)
class TransformersModel:
    """A fixture: a model, token ids, and the logits that transformers has after each."""

    config: ModelConfig
    weights: Weights
    tokens: list[int]
    logits: NDArray[np.float32]  # (tokens, vocab)


@dataclasses.dataclass(frozen=True)
class LongText:
    """Many tokens for a fixture's model, and the logits after those at some positions."""

    tokens: list[int]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]  # (positions, vocab)


def load_fixture(folder: Path) -> TransformersModel:
    """Read a fixture."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = np.load(folder / "expected.npz", allow_pickle=False)
    config = _config(settings)
    tensors = load_file(folder / "model.safetensors").items()
    weights = {_gguf_name(name): _interleaved(name, values, config) for name, values in tensors}
    weights = _with_stacked_experts(weights, config)
    return TransformersModel(config, weights, expected["tokens"].tolist(), expected["logits"])


def load_long(folder: Path) -> LongText:
    """Read a fixture's long sequence."""
    expected = np.load(folder / "expected_long.npz", allow_pickle=False)
    return LongText(expected["tokens"].tolist(), expected["positions"], expected["logits"])


def _config(settings: dict[str, Any]) -> ModelConfig:
    dim, n_heads = settings["hidden_size"], settings["num_attention_heads"]
    rope = settings.get("rope_parameters") or settings
    scaling = _scaling(settings)
    kind = settings["model_type"]
    n_experts = settings.get("num_local_experts")
    context = settings["max_position_embeddings"]
    is_stretched = scaling is not None and not isinstance(scaling, Llama3Rope)
    return ModelConfig(
        architecture=ARCHITECTURES.get(kind, "llama"),
        vocab_size=settings["vocab_size"],
        dim=dim,
        n_layers=settings["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=settings["num_key_value_heads"],
        head_dim=settings.get("head_dim") or dim // n_heads,
        ffn_dim=settings.get("moe_intermediate_size", settings["intermediate_size"]),
        norm_eps=settings["rms_norm_eps"],
        rope_theta=rope["rope_theta"],
        context_length=context * STRETCHED if is_stretched else context,
        rope_scaling=scaling,
        sliding_window=settings.get("sliding_window"),
        attention_bias=kind == "qwen2",
        qk_norm=kind in {"qwen3", "qwen3_moe"},
        experts=n_experts
        and Experts(
            n_experts, settings["num_experts_per_tok"], settings.get("norm_topk_prob", True)
        ),
    )


def _scaling(settings: dict[str, Any]) -> RopeScaling | None:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    context = settings["max_position_embeddings"]
    match rope.get("rope_type", "default"):
        case "llama3":
            return Llama3Rope(
                rope["factor"],
                rope["low_freq_factor"],
                rope["high_freq_factor"],
                rope["original_max_position_embeddings"],
            )
        case "linear":
            return LinearRope(rope["factor"])
        case "dynamic":
            return DynamicRope(rope["factor"], context)
        case "yarn":
            attention_factor = 0.1 * float(np.log(rope["factor"])) + 1
            return YarnRope(rope["factor"], context, attention_factor)
    return None


HUGGING_FACE_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate.": "ffn_gate_inp.",
    "block_sparse_moe.gate.": "ffn_gate_inp.",
    "block_sparse_moe.": "mlp.",
    "w1.": "gate_proj.",
    "w2.": "down_proj.",
    "w3.": "up_proj.",
}


def _gguf_name(name: str) -> str:
    for theirs, ours in HUGGING_FACE_PARTS.items():
        name = name.replace(theirs, ours)
    return re.sub(r"mlp\.experts\.(\d+)\.(\w+)_proj", r"ffn_\2.\1", name)


def _with_stacked_experts(weights: Weights, config: ModelConfig) -> Weights:
    """Put experts into one tensor, ``(experts, rows, cols)``."""
    if config.experts is None:
        return weights
    experts = {name for name in weights if re.search(r"ffn_\w+\.\d+\.weight", name)}
    stacked = {name: values for name, values in weights.items() if name not in experts}
    for whole in {re.sub(r"\.\d+\.weight", "", name) for name in experts}:
        parts = [weights[f"{whole}.{i}.weight"] for i in range(config.experts.count)]
        stacked[f"{whole}_exps.weight"] = np.stack(parts)
    return stacked


def _interleaved(
    name: str, values: NDArray[np.float32], config: ModelConfig
) -> NDArray[np.float32]:
    """Reorder the rows of a head: Hugging Face pairs row ``i`` with ``i + head_dim / 2``."""
    if not re.search(r"[qk]_(proj|norm)", name):
        return values
    pairs = np.arange(config.head_dim).reshape(2, -1).T.ravel()
    heads = values.reshape(-1, config.head_dim, *values.shape[1:])
    return heads[:, pairs].reshape(values.shape)
