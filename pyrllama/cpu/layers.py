"""Which tensors the records of layers hold: what an architecture has, field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.models.llama import OUTPUT, ROUTER, TOKEN_EMBEDDING

if TYPE_CHECKING:
    from pyrllama.model_config import ModelConfig

_ATTENTION_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output")
_FFN_MATRICES = ("ffn_gate", "ffn_up", "ffn_down")


def layer_matrices(config: ModelConfig) -> dict[str, str]:
    """Return the fields of a layer's record that are matrices, in the order in which it has them.

    Their values are the names of tensors behind ``blk.N.``.
    """
    names = {name: f"{name}.weight" for name in _ATTENTION_MATRICES}
    if config.experts is None:
        return names | {name: f"{name}.weight" for name in _FFN_MATRICES}
    of_experts = {name: f"{name}_exps.weight" for name in _FFN_MATRICES}
    return names | {"router": f"{ROUTER}.weight"} | of_experts


def layer_vectors(config: ModelConfig) -> dict[str, str]:
    """Return the fields of a layer's record that are vectors, as ``layer_matrices`` does."""
    names = {"attn_norm": "attn_norm.weight", "ffn_norm": "ffn_norm.weight"}
    if config.attention_bias:
        names |= {f"{x}_bias": f"attn_{x}.bias" for x in "qkv"}
    if config.qk_norm:
        names |= {f"{x}_norm": f"attn_{x}_norm.weight" for x in "qk"}
    return names


def matrix_names(config: ModelConfig, n_layers: int, *, output: bool) -> list[str]:
    """Return the matrices in the order in which a pass reads them, which is that in memory."""
    of_a_layer = layer_matrices(config).values()
    layers = [f"blk.{i}.{name}" for i in range(n_layers) for name in of_a_layer]
    return [TOKEN_EMBEDDING, *layers, *([OUTPUT] if output else [])]
