"""Models with experts on a device: against transformers, the reference, and shared out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.kernels import EXACT_ISAS
from support.opencl_devices import fake_device
from support.opencl_models import opencl_model, tuning_for
from support.tiny_models import (
    MemoryCheckpoint,
    chunk_of,
    greedy,
    logits_of,
    random_weights,
    tiny_config,
)
from support.transformers_models import FIXTURES, load_fixture

from pyrllama import cpu, opencl
from pyrllama.core import Batch, Chunk
from pyrllama.errors import DeviceError
from pyrllama.loading import load_model
from pyrllama.model_config import Experts
from pyrllama.opencl import OpenClModel, stage
from pyrllama.opencl.parts import Part, stage_stacks
from pyrllama.opencl.weights import DeviceMemory
from pyrllama.reference import ReferenceModel
from pyrllama.reference.model import load_weights
from pyrllama.split import SplitModel
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device

MAX_SEQ_LEN = 96
FLOAT_ROUNDING = 1e-3
TENSOR_ROUNDING = 1e-2
MIXTRAL = load_fixture(FIXTURES / "mixtral")
TOKENS = np.random.default_rng(4).integers(0, 1 << 20, 40)
TYPES = (
    (TensorType.Q4_K, TensorType.Q4_K, TensorType.Q8_0),
    (TensorType.Q2_K, TensorType.Q4_0, TensorType.F16),
)
"""Of gates, ups and downs of each layer; where gates and ups differ, they are two matrices."""
QUANTISABLE = tiny_config(dim=256, head_dim=32, ffn_dim=288, vocab_size=41, experts=Experts(6, 2))


def batch_rounding(device: Device) -> float:
    return TENSOR_ROUNDING if device.is_nvidia else FLOAT_ROUNDING


def one_by_one(model: OpenClModel, tokens: list[int]) -> NDArray[np.float32]:
    steps = (Batch((chunk_of([token], i, outputs=1),)) for i, token in enumerate(tokens))
    return np.concatenate([model.forward(step) for step in steps])


def tokens_of(config: ModelConfig, n: int) -> list[int]:
    tokens: list[int] = (TOKENS[:n] % config.vocab_size).tolist()
    return tokens


def test_a_prompt_and_tokens_alone_equal_transformers(device: Device) -> None:
    tokens, expected, rounding = MIXTRAL.tokens, MIXTRAL.logits, batch_rounding(device)
    with opencl_model(device, MIXTRAL.config, MIXTRAL.weights, kv_type=TensorType.F32) as model:
        whole, alone = logits_of(model, tokens), one_by_one(model, tokens)
        np.testing.assert_array_equal(logits_of(model, tokens), whole)
        np.testing.assert_array_equal(one_by_one(model, tokens[:9]), alone[:9])
        others = Chunk(tuple(tokens[:3]), 0, (1,), 0)
        beside = model.forward(Batch((Chunk((tokens[0],), 0, (0,)), others)))
        embedding, unchosen = 4 * 70 * 32, 2 * 2 * 4 * (2 * 40 * 32 + 32 * 64)
        assert model.decode_bytes == model.weight_bytes - unchosen - embedding
    np.testing.assert_allclose(whole, expected, atol=rounding, rtol=0)
    np.testing.assert_allclose(alone, expected, atol=rounding, rtol=0)
    np.testing.assert_allclose(beside, expected[:1], atol=rounding, rtol=0)


def test_a_device_that_waits_across_the_grid_takes_launches_too(device: Device) -> None:
    tokens = MIXTRAL.tokens[:3]
    with opencl_model(
        device, MIXTRAL.config, MIXTRAL.weights, kv_type=TensorType.F32, persistent=True, groups=1
    ) as model:
        alone = one_by_one(model, tokens)
    expected = MIXTRAL.logits[: len(tokens)]
    np.testing.assert_allclose(alone, expected, atol=batch_rounding(device), rtol=0)


def test_normed_heads_before_experts_equal_transformers(device: Device) -> None:
    fixture = load_fixture(FIXTURES / "qwen3_moe")
    with opencl_model(device, fixture.config, fixture.weights, kv_type=TensorType.F32) as model:
        whole = logits_of(model, fixture.tokens)
    np.testing.assert_allclose(whole, fixture.logits, atol=batch_rounding(device), rtol=0)


@pytest.mark.parametrize(
    ("experts", "ffn_dim", "n_tokens"),
    [(Experts(5, 1, normalised=False), 44, 3), (Experts(3, 3), 97, 40)],
    ids=["one_of_5", "all_of_3"],
)
def test_batches_equal_the_reference(
    device: Device, experts: Experts, ffn_dim: int, n_tokens: int
) -> None:
    config = tiny_config(experts=experts, ffn_dim=ffn_dim, dim=72, n_layers=1, vocab_size=29)
    weights, tokens = random_weights(config, seed=7, std=0.1), tokens_of(config, n_tokens)
    expected = logits_of(ReferenceModel(config, weights, 2), tokens)
    with opencl_model(device, config, weights, kv_type=TensorType.F32) as model:
        whole = logits_of(model, tokens)
        first = model.forward(Batch((chunk_of(tokens[:2]),)))
    np.testing.assert_allclose(whole, expected, atol=batch_rounding(device), rtol=0)
    np.testing.assert_allclose(first, expected[:2], atol=batch_rounding(device), rtol=0)


class MixedCheckpoint(MemoryCheckpoint):
    """Experts in types of their own, all other matrices in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, random_weights(config, seed=9, std=0.05))
        self.tensors = dict(self.tensors)
        for layer, types in enumerate(TYPES):
            for matrix, kind in zip(("gate", "up", "down"), types, strict=True):
                name = f"blk.{layer}.ffn_{matrix}_exps.weight"
                self.tensors[name] = dataclasses.replace(self.tensors[name], type=kind)


def test_quantised_experts_equal_the_reference(device: Device) -> None:
    checkpoint, tokens = MixedCheckpoint(QUANTISABLE), tokens_of(QUANTISABLE, 20)
    expected = logits_of(ReferenceModel(QUANTISABLE, load_weights(checkpoint), 1), tokens)
    with opencl_model(device, QUANTISABLE, checkpoint, kv_type=TensorType.F32) as model:
        whole = logits_of(model, tokens)
        alone = model.forward(Batch((chunk_of(tokens[-1:], 19, outputs=1),)))
    np.testing.assert_allclose(whole, expected, atol=batch_rounding(device), rtol=0)
    np.testing.assert_allclose(alone, expected[-1:], atol=batch_rounding(device), rtol=0)


# --- shared out, with the program that the fixture has built ----------------------------------


def test_half_of_the_layers_on_a_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def default_tuning(device: Device, config: ModelConfig, _kinds: set[TensorType]) -> Any:
        return tuning_for(device, config)

    monkeypatch.setenv("RLLAMA_ISA", EXACT_ISAS[0].name)  # a CPU's matrix tiles round to bfloat16
    monkeypatch.setattr(stage, "default_tuning", default_tuning)
    monkeypatch.setattr(opencl, "choose_devices", lambda _: (device,))
    checkpoint = MemoryCheckpoint(MIXTRAL.config, MIXTRAL.weights)
    sizes: dict[str, Any] = {"kv_type": TensorType.F32, "max_seq_len": MAX_SEQ_LEN, "threads": 1}
    half = load_model(
        checkpoint, backend="opencl", weight_type=None, progress=None, gpu_share=0.5, **sizes
    )
    whole = cpu.load_model(checkpoint, **sizes)
    assert isinstance(half, SplitModel)
    np.testing.assert_allclose(
        logits_of(half, MIXTRAL.tokens), MIXTRAL.logits, atol=batch_rounding(device), rtol=0
    )
    assert greedy(half, MIXTRAL.tokens[:5], 20) == greedy(whole, MIXTRAL.tokens[:5], 20)
    half.close()
    whole.close()


def test_layers_on_two_devices(device: Device) -> None:
    parts = [
        (device, Part(range(1), embeds=True, ends=False)),
        (device, Part(range(1, 2), embeds=False, ends=True)),
    ]
    model = OpenClModel(
        MemoryCheckpoint(MIXTRAL.config, MIXTRAL.weights),
        parts,
        kv_type=TensorType.F32,
        max_seq_len=MAX_SEQ_LEN,
        tuning=tuning_for(device, MIXTRAL.config),
    )
    np.testing.assert_allclose(
        logits_of(model, MIXTRAL.tokens), MIXTRAL.logits, atol=batch_rounding(device), rtol=0
    )
    model.close()


# --- what needs no device ---------------------------------------------------------------------


def test_a_matrix_that_no_buffer_holds_is_named() -> None:
    part = Part(range(1), embeds=False, ends=False)
    groups = stage_stacks(MemoryCheckpoint(MIXTRAL.config, MIXTRAL.weights), part, None)
    (router,), (gate_up,) = groups["0.router"], groups["0.expert_gate_up"]
    assert (router.experts, gate_up.experts, gate_up.extent.rows) == (1, 4, 4 * 80)
    small = dataclasses.replace(fake_device(), max_buffer=gate_up.extent.n_bytes - 1)
    words = r"of 0.0 GB for blk.0.ffn_gate_exps.weight and blk.0.ffn_up_exps.weight; choose a"
    with pytest.raises(DeviceError, match=words):
        DeviceMemory(small, None, [gate_up])
