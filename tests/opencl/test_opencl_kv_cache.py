"""The types of the KV cache on a device: what a block of it holds, and what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.opencl_models import opencl_model
from support.tiny_models import chunk_of, logits_of, random_weights, tiny_config
from support.transformers_models import FIXTURES, load_fixture

from pyrllama.core import BLOCK_TOKENS, Batch
from pyrllama.quants import dequantize, quantize
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.model import OpenClModel

CONFIGS = {
    "head_40": tiny_config(head_dim=40, n_kv_heads=1, vocab_size=101),
    "normed_head_64": tiny_config(
        head_dim=64, n_heads=8, attention_bias=True, qk_norm=True, sliding_window=40
    ),
}
ONCE_ROUNDED = 6e-2
"""A number that falls on the other side of a tie moves by a step: 1/127 of the greatest in 32."""
TRANSFORMERS_QUANTISED = 0.25
"""Seen up to 0.1, where logits reach 6.4."""
N_TOKENS = 90


def tokens_of(config: ModelConfig) -> list[int]:
    tokens: list[int] = np.random.default_rng(4).integers(0, config.vocab_size, N_TOKENS).tolist()
    return tokens


def one_by_one(model: OpenClModel, tokens: list[int]) -> NDArray[np.float32]:
    steps = [model.forward(Batch((chunk_of([x], i),))) for i, x in enumerate(tokens)]
    return np.concatenate(steps)


def first_layer(block: NDArray[np.uint8], config: ModelConfig, kv_type: TensorType) -> Any:
    """Return keys and values of a block's first layer, ``(kv heads, 2, tokens, stride)``."""
    heads, tokens = config.n_kv_heads, BLOCK_TOKENS
    layers = block.reshape(config.n_layers, heads, 2, -1)[0]
    if kv_type is TensorType.Q8_0:
        stride = -(-config.head_dim // 32) * 32
        numbers = layers[..., : tokens * stride].view(np.int8).astype(np.float32)
        scales = layers[..., tokens * stride :].copy().view(np.float16).astype(np.float32)
        scales = scales.reshape(heads, 2, -1, tokens).swapaxes(2, 3).repeat(32, axis=3)
    else:
        stride, numbers, scales = config.head_dim, layers.view(np.float32), np.float32(1.0)
    keys = numbers[:, 0].reshape(heads, -1, tokens, 8).swapaxes(1, 2)
    both = [keys.reshape(heads, tokens, stride), numbers[:, 1].reshape(heads, tokens, stride)]
    return np.stack(both, axis=1) * scales


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_q8_0_cache_holds_what_the_format_says(device: Device, config: ModelConfig) -> None:
    weights, tokens = random_weights(config, seed=3, std=0.1), tokens_of(config)
    blocks, logits, alone = {}, {}, {}
    for kv_type in (TensorType.F32, TensorType.Q8_0):
        with opencl_model(device, config, weights, kv_type=kv_type) as model:
            assert f" {kv_type.name} " in model.block_format
            logits[kv_type] = logits_of(model, tokens)
            blocks[kv_type] = [first_layer(model.read_block(1), config, kv_type)]
            alone[kv_type] = one_by_one(model, tokens)
            blocks[kv_type].append(first_layer(model.read_block(1), config, kv_type))
            bytes_of_token = model.kv_bytes_per_token
    assert bytes_of_token == 2 * 2 * config.n_kv_heads * 68
    for whole, kept in zip(blocks[TensorType.F32], blocks[TensorType.Q8_0], strict=True):
        padded = np.zeros_like(kept)
        padded[..., : config.head_dim] = whole
        rows = padded.reshape(-1, padded.shape[-1])
        stated = dequantize(TensorType.Q8_0, quantize(TensorType.Q8_0, rows), rows.shape[1])
        steps = np.abs(rows).reshape(-1, 32).max(axis=1, keepdims=True) / 127  # (blocks, 1)
        errors = np.abs(kept.reshape(-1, 32) - stated.reshape(-1, 32)) / np.maximum(steps, 1e-9)
        assert np.max(errors) < 1.01  # a tie that falls to the other side
        assert np.mean(errors > 0.01) < 1e-3
    np.testing.assert_allclose(
        alone[TensorType.Q8_0], logits[TensorType.Q8_0], rtol=0, atol=ONCE_ROUNDED
    )
    spread = np.abs(logits[TensorType.Q8_0] - logits[TensorType.F32])
    assert 1e-3 < np.max(spread) < ONCE_ROUNDED


def test_logits_of_a_q8_0_cache_are_near_those_of_transformers(device: Device) -> None:
    fixture = load_fixture(FIXTURES / "grouped_tied")
    config, weights = fixture.config, fixture.weights
    changes: dict[str, Any] = {"attention_rows": 0}
    with opencl_model(device, config, weights, kv_type=TensorType.Q8_0, **changes) as model:
        for logits in (logits_of(model, fixture.tokens), one_by_one(model, fixture.tokens)):
            np.testing.assert_allclose(logits, fixture.logits, rtol=0, atol=TRANSFORMERS_QUANTISED)
