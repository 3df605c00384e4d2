"""What architectures beside LLaMA have, on a device: biases, normed heads, sliding windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.opencl_models import opencl_model
from support.tiny_models import chunk_of, logits_of, random_weights, tiny_config
from support.transformers_models import FIXTURES, load_fixture

from pyrllama.core import Batch, Chunk
from pyrllama.reference import ReferenceModel
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from support.tiny_models import Weights

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.model import OpenClModel

CONFIGS = {
    "normed_heads": tiny_config(architecture="qwen3", qk_norm=True, head_dim=68, n_heads=2),
    "both_in_a_window": tiny_config(attention_bias=True, qk_norm=True, sliding_window=40),
    "window_of_one": tiny_config(sliding_window=1, vocab_size=101),
}
FLOAT_ROUNDING = 1e-3
TENSOR_ROUNDING = 1e-2
N_TOKENS = 150
MAX_SEQ_LEN = 160
CUTS = [1] * N_TOKENS, [7, 1, 63, 33, 1, 45], [64, 86]

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def rounding(device: Device) -> float:
    return TENSOR_ROUNDING if device.is_nvidia else FLOAT_ROUNDING


def tokens_of(config: ModelConfig) -> list[int]:
    tokens: list[int] = np.random.default_rng(5).integers(0, config.vocab_size, N_TOKENS).tolist()
    return tokens


def in_chunks(model: OpenClModel, tokens: list[int], sizes: list[int]) -> NDArray[np.float32]:
    rows, start = [], 0
    for size in sizes:
        rows.append(model.forward(Batch((chunk_of(tokens[start : start + size], start),))))
        start += size
    return np.concatenate(rows)


def reference_logits(config: ModelConfig, weights: Weights) -> NDArray[np.float32]:
    return logits_of(ReferenceModel(config, weights, 5), tokens_of(config))


@each_config
def test_logits_equal_the_reference_however_a_prompt_is_cut(
    device: Device, config: ModelConfig
) -> None:
    weights, tokens = random_weights(config, seed=6, std=0.1), tokens_of(config)
    with opencl_model(
        device, config, weights, max_seq_len=MAX_SEQ_LEN, kv_type=TensorType.F32
    ) as model:
        whole = logits_of(model, tokens)
        for sizes in CUTS:
            cut = in_chunks(model, tokens, sizes)
            np.testing.assert_allclose(cut, whole, rtol=0, atol=rounding(device))
        other = Chunk(tuple(tokens[:3]), 0, (1,), 0)  # moves all rows behind it in their tiles
        several = Chunk(tuple(tokens[:70]), 0, (2, 0, 3), 70)
        beside = model.forward(Batch((other, several)))
    np.testing.assert_allclose(beside, whole[:70], rtol=0, atol=rounding(device))
    expected = reference_logits(config, weights)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=rounding(device))


def test_rows_alone_and_groups_of_several_teams_equal_the_reference(device: Device) -> None:
    config = CONFIGS["both_in_a_window"]
    weights, tokens = random_weights(config, seed=6, std=0.1), tokens_of(config)
    expected = reference_logits(config, weights)
    changes: dict[str, Any] = {"attention_rows": 0, "group": 64}
    with opencl_model(
        device, config, weights, max_seq_len=MAX_SEQ_LEN, kv_type=TensorType.F32, **changes
    ) as model:
        for sizes in CUTS:
            logits = in_chunks(model, tokens, sizes)
            np.testing.assert_allclose(logits, expected, rtol=0, atol=rounding(device))


@pytest.mark.parametrize("folder", ["qwen2", "qwen3", "mistral_window"])
def test_logits_equal_those_of_transformers(device: Device, folder: str) -> None:
    fixture = load_fixture(FIXTURES / folder)
    with opencl_model(device, fixture.config, fixture.weights, kv_type=TensorType.F32) as model:
        n = len(fixture.tokens)
        for sizes in ([n], [1] * n):
            logits = in_chunks(model, fixture.tokens, sizes)
            np.testing.assert_allclose(logits, fixture.logits, atol=rounding(device), rtol=0)
