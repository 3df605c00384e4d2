"""Writes llama2.c checkpoints for tests, in the order that its ``export.py`` has."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

    Weights = Mapping[str, NDArray[np.float32]]

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FEED_FORWARD = ("ffn_gate", "ffn_down", "ffn_up")


def write_llama2c(
    path: Path, config: ModelConfig, weights: Weights, version: int = 0, group_size: int = 16
) -> Path:
    """Write a checkpoint; version 0 is the legacy format, without an output it is tied."""
    tied = "output.weight" not in weights
    if version == 0:
        path.write_bytes(_sizes(config, 1 if tied else -1) + _legacy_tensors(config, weights))
        return path
    head = struct.pack("<Ii", 0x616B3432, version) + _sizes(config, 1)
    head += struct.pack("<B", tied) + (struct.pack("<i", group_size) if version == 2 else b"")
    norms = ["attn_norm", "ffn_norm"]
    vectors = [weights[name] for norm in norms for name in _layers(config, norm)]
    vectors.append(weights["output_norm.weight"])
    matrices = [weights["token_embd.weight"]]
    for part in ATTENTION + FEED_FORWARD:
        matrices += [weights[name] for name in _layers(config, part)]
    if not tied:
        matrices.append(weights["output.weight"])
    body = b"".join(vector.tobytes() for vector in vectors)
    for matrix in matrices:
        body += _groups(matrix, group_size) if version == 2 else matrix.tobytes()
    path.write_bytes(head.ljust(256, b"\0") + body)
    return path


def group(
    matrix: NDArray[np.float32], group_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the int8 groups of a matrix, ``(groups, group_size)``, and their scales."""
    groups = matrix.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(groups / scales).astype(np.int8), scales


def _groups(matrix: NDArray[np.float32], group_size: int) -> bytes:
    numbers, scales = group(matrix, group_size)
    return numbers.tobytes() + scales.tobytes()


def _sizes(config: ModelConfig, sign: int) -> bytes:
    return struct.pack(
        "<7i",
        config.dim,
        config.ffn_dim,
        config.n_layers,
        config.n_heads,
        config.n_kv_heads,
        sign * config.vocab_size,
        config.context_length,
    )


def _layers(config: ModelConfig, part: str) -> list[str]:
    return [f"blk.{layer}.{part}.weight" for layer in range(config.n_layers)]


def _legacy_tensors(config: ModelConfig, weights: Weights) -> bytes:
    names = ["token_embd.weight"]
    for part in ("attn_norm", *ATTENTION, "ffn_norm", *FEED_FORWARD):
        names += _layers(config, part)
    stored = b"".join(weights[name].tobytes() for name in [*names, "output_norm.weight"])
    stored += np.full(config.context_length * config.head_dim, 7, np.float32).tobytes()
    return stored + (weights["output.weight"].tobytes() if "output.weight" in weights else b"")
