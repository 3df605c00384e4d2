"""Tiny random models for tests, of any architecture, and what backends make of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyrllama.checkpoints.base import Checkpoint
from pyrllama.core import Batch, Chunk, blocks_for
from pyrllama.model_config import ModelConfig
from pyrllama.models.llama import OUTPUT, expected_tensors
from pyrllama.models.rope import ROPE_FACTORS
from pyrllama.quants import quantize
from pyrllama.tensors import Tensor, TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Weights = dict[str, NDArray[np.float32]]

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
"""Exact texts that a model must give."""


class Forward(Protocol):
    """A backend as far as these helpers use it."""

    def forward(self, batch: Batch) -> NDArray[np.float32]: ...


def tiny_config(**overrides: Any) -> ModelConfig:
    """Return a model of two layers with grouped queries; any field may be another."""
    config = ModelConfig(
        architecture="llama",
        vocab_size=128,
        dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        ffn_dim=96,
        norm_eps=1e-5,
        rope_theta=10000.0,
        context_length=256,
    )
    return dataclasses.replace(config, **overrides)


def random_weights(
    config: ModelConfig, seed: int = 0, *, tied: bool = False, std: float = 0.2
) -> Weights:
    """Return every tensor of a model, by GGUF name; norm weights are spread around 1."""
    rng = np.random.default_rng(seed)
    skipped = {ROPE_FACTORS, OUTPUT} if tied else {ROPE_FACTORS}
    weights: Weights = {}
    for name, shape in expected_tensors(config).items():
        if name not in skipped:
            norm = name.endswith("_norm.weight")
            values = rng.uniform(0.5, 1.5, shape) if norm else rng.normal(0.0, std, shape)
            weights[name] = values.astype(np.float32)
    return weights


class MemoryCheckpoint(Checkpoint):
    """A checkpoint over arrays: matrices in the type asked for, vectors in float32."""

    def __init__(
        self, config: ModelConfig, weights: Weights, stored_as: TensorType = TensorType.F32
    ) -> None:
        self.path = Path("memory")
        self.format = "arrays in memory"
        self.config = config
        self.metadata: Mapping[str, Any] = {}
        self._weights = weights
        self.tensors = {
            name: TensorInfo(name, values.shape, stored_as if values.ndim > 1 else TensorType.F32)
            for name, values in weights.items()
        }

    def read(self, name: str) -> Tensor:
        info = self.tensors[name]
        rows = self._weights[name].reshape(-1, info.shape[-1])
        return Tensor(info, quantize(info.type, rows))

    def release(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass


def chunk_of(
    tokens: Sequence[int], start: int = 0, first_block: int = 0, outputs: int | None = None
) -> Chunk:
    """Return a chunk over consecutive cache blocks; all logits are wanted unless told."""
    n_blocks = blocks_for(start + len(tokens))
    blocks = tuple(range(first_block, first_block + n_blocks))
    return Chunk(tuple(tokens), start, blocks, len(tokens) if outputs is None else outputs)


def logits_of(model: Forward, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits after each token of one sequence, in one pass: ``(n, vocab)``."""
    return model.forward(Batch((chunk_of(tokens),)))


def greedy(model: Forward, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """Return the ids that always taking the largest logit appends to the prompt."""
    tokens = list(prompt)
    start = 0
    for _ in range(n_tokens):
        logits = model.forward(Batch((chunk_of(tokens[start:], start, outputs=1),)))
        start = len(tokens)
        tokens.append(int(np.argmax(logits[-1])))
    return tokens[len(prompt) :]
