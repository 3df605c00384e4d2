"""Tiny LLaMA models for tests: random ones, and those that transformers computed logits of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pyrllama.checkpoints.base import Checkpoint
from pyrllama.core import (
    BLOCK_TOKENS,
    Batch,
    Chunk,
    ModelConfig,
    RopeScaling,
    Tensor,
    TensorInfo,
    TensorType,
)
from pyrllama.models.llama import OUTPUT, ROPE_FACTORS, expected_tensors
from pyrllama.quants import quantize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Weights = dict[str, NDArray[np.float32]]

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FIXTURE_FOLDERS = sorted(path.parent for path in FIXTURES.glob("*/config.json"))
"""Hugging Face folders, each with transformers' own logits; see ``make_fixtures.py``."""
GOLDEN = FIXTURES.parent / "golden"
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
            norm = len(shape) == 1
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
            name: TensorInfo(name, values.shape, stored_as if values.ndim == 2 else TensorType.F32)
            for name, values in weights.items()
        }

    def read(self, name: str) -> Tensor:
        info = self.tensors[name]
        return Tensor(info, quantize(info.type, np.atleast_2d(self._weights[name])))

    def release(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class TransformersModel:
    """A fixture: a model, token ids, and the logits that transformers has after each."""

    config: ModelConfig
    weights: Weights
    tokens: list[int]
    logits: NDArray[np.float32]  # (tokens, vocab)


def load_fixture(folder: Path) -> TransformersModel:
    """Read a fixture without the package's own checkpoint readers."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = np.load(folder / "expected.npz", allow_pickle=False)
    config = _config(settings)
    weights = {
        _gguf_name(name): _interleaved(name, values, config)
        for name, values in load_file(folder / "model.safetensors").items()
    }
    return TransformersModel(config, weights, expected["tokens"].tolist(), expected["logits"])


def _config(settings: dict[str, Any]) -> ModelConfig:
    dim, n_heads = settings["hidden_size"], settings["num_attention_heads"]
    rope = settings.get("rope_parameters") or settings
    scaling = settings.get("rope_scaling")
    return ModelConfig(
        architecture="llama",
        vocab_size=settings["vocab_size"],
        dim=dim,
        n_layers=settings["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=settings["num_key_value_heads"],
        head_dim=settings.get("head_dim", dim // n_heads),
        ffn_dim=settings["intermediate_size"],
        norm_eps=settings["rms_norm_eps"],
        rope_theta=rope["rope_theta"],
        context_length=settings["max_position_embeddings"],
        rope_scaling=scaling
        and RopeScaling(
            scaling["factor"],
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
            scaling["original_max_position_embeddings"],
        ),
    )


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
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    for theirs, ours in HUGGING_FACE_PARTS.items():
        name = name.replace(theirs, ours)
    return name


def _interleaved(
    name: str, values: NDArray[np.float32], config: ModelConfig
) -> NDArray[np.float32]:
    """Reorder the rows of a head: Hugging Face pairs row ``i`` with ``i + head_dim / 2``."""
    if "q_proj" not in name and "k_proj" not in name:
        return values
    pairs = np.arange(config.head_dim).reshape(2, -1).T.ravel()
    return values.reshape(-1, config.head_dim, config.dim)[:, pairs].reshape(values.shape)


def chunk_of(
    tokens: Sequence[int], start: int = 0, first_block: int = 0, outputs: int | None = None
) -> Chunk:
    """Return a chunk over consecutive cache blocks; all logits are wanted unless told."""
    n_blocks = -(-(start + len(tokens)) // BLOCK_TOKENS)
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
