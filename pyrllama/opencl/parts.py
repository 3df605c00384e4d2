"""What of a model a device has: its layers, their matrices by what they read, and how much room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrllama.core import BLOCK_TOKENS
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING
from pyrllama.opencl.experts import GROUPS_OF_EXPERTS
from pyrllama.opencl.layout import BLOCK, round_up
from pyrllama.opencl.weights import stacks
from pyrllama.quants import row_bytes
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.weights import Stack

KV_PADDING = {TensorType.F16: 8, TensorType.F32: 8, TensorType.Q8_0: BLOCK}
"""Types of the KV cache, and the numbers to a multiple of which a head is padded in it."""
GROUPS_OF_ATTENTION: dict[str, tuple[str, ...]] = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "attn_output": ("attn_output",),
}
GROUPS_OF_NETWORK: dict[str, tuple[str, ...]] = {
    "gate_up": ("ffn_gate", "ffn_up"),
    "ffn_down": ("ffn_down",),
}
"""Matrices of a layer that read the same activations are multiplied as one."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a stage computes: some of the layers, and what stands at the model's two ends."""

    layers: range
    embeds: bool
    """Whether it begins with the tokens' embeddings; else it is given hidden states."""
    ends: bool
    """Whether it ends with logits; else it gives hidden states."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a stage must have room for."""

    max_seq_len: int
    n_blocks: int
    max_tokens: int
    kv_type: TensorType


def block_bytes(config: ModelConfig, n_layers: int, kv_type: TensorType) -> int:
    """Return the bytes of a block of the cache."""
    head_bytes = row_bytes(kv_type, round_up(config.head_dim, KV_PADDING[kv_type]))
    return 2 * n_layers * config.n_kv_heads * BLOCK_TOKENS * head_bytes


def stage_stacks(
    checkpoint: Checkpoint, part: Part, wanted: TensorType | None
) -> dict[str, list[Stack]]:
    """Return all matrices of a part, by group (``"0.qkv"``, ``"output"``), as they are held."""
    of_network = GROUPS_OF_EXPERTS if checkpoint.config.experts else GROUPS_OF_NETWORK
    found = {
        f"{layer}.{group}": stacks(checkpoint, [f"blk.{layer}.{n}.weight" for n in names], wanted)
        for layer in part.layers
        for group, names in (GROUPS_OF_ATTENTION | of_network).items()
    }
    tied = OUTPUT not in checkpoint.tensors
    if part.embeds or (part.ends and tied):
        found["embedding"] = stacks(checkpoint, [TOKEN_EMBEDDING], wanted)
    if part.ends:
        found["output"] = found["embedding"] if tied else stacks(checkpoint, [OUTPUT], wanted)
    return found
