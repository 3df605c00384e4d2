"""Models whose layers are shared out: the CPU and a device, or two parts on one device."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.opencl_devices import fake_device
from support.opencl_models import tuning_for
from support.tiny_models import (
    MemoryCheckpoint,
    chunk_of,
    greedy,
    logits_of,
    random_weights,
    tiny_config,
)

from pyrllama import cpu, opencl
from pyrllama.core import Batch, Chunk
from pyrllama.cpu import CpuModel
from pyrllama.errors import BackendError, UnsupportedTypeError
from pyrllama.loading import load_model
from pyrllama.opencl import OpenClModel, stage
from pyrllama.opencl.parts import Part
from pyrllama.split import SplitModel
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pyrllama.backend import Model
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.plan import Plan

CONFIG = tiny_config(vocab_size=101)
CHECKPOINT = MemoryCheckpoint(CONFIG, random_weights(CONFIG, std=0.05))
TOKENS = np.random.default_rng(3).integers(0, 101, 40).tolist()
ROUNDING = 1e-3
TENSOR_ROUNDING = 1e-2


def load(
    share: float,
    told: list[Any] | None = None,
    checkpoint: Any = CHECKPOINT,
    cache_tokens: int | None = None,
) -> Model:
    return load_model(
        checkpoint,
        backend="opencl",
        weight_type=None,
        kv_type=TensorType.F32,
        max_seq_len=96,
        cache_tokens=cache_tokens,
        threads=1,
        progress=None,
        gpu_share=share,
        on_memory=(told if told is not None else []).append,
    )


def expected() -> Model:
    return cpu.load_model(CHECKPOINT, kv_type=TensorType.F32, max_seq_len=96, threads=1)


def test_half_of_the_layers_on_a_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "default_tuning", tuning_for_default)
    monkeypatch.setattr(opencl, "choose_devices", lambda _: (device,))
    told: list[Plan] = []
    model, whole = load(0.5, told), expected()
    assert isinstance(model, SplitModel)
    assert str(told[0]).startswith("runs 1 layers on the CPU and 1 layers on OpenCL device ")
    assert model.kv_bytes_per_token == whole.kv_bytes_per_token
    tolerance = TENSOR_ROUNDING if device.is_nvidia else ROUNDING
    assert greedy(model, TOKENS[:5], 20) == greedy(whole, TOKENS[:5], 20)
    logits = logits_of(whole, TOKENS)
    np.testing.assert_allclose(logits_of(model, TOKENS), logits, atol=tolerance)
    step = Batch((chunk_of(TOKENS[-1:], len(TOKENS) - 1, outputs=1),))
    np.testing.assert_allclose(model.forward(step), logits[-1:], atol=tolerance)
    model.close()
    whole.close()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_cache_of_several_contexts(
    device: Device, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(stage, "default_tuning", tuning_for_default)
    monkeypatch.setattr(opencl, "choose_devices", lambda _: (device,))
    told: list[Plan] = []
    model, whole = load(share, told, cache_tokens=4 * 96), expected()
    assert (model.n_blocks, whole.n_blocks) == (12, 3)
    (need,) = told[0].needs
    assert need.kv_cache == 12 * 32 * model.kv_bytes_per_token * share
    tolerance = TENSOR_ROUNDING if device.is_nvidia else ROUNDING
    last = model.forward(Batch((Chunk(tuple(TOKENS), 0, (11, 4), 1),)))
    np.testing.assert_allclose(last, logits_of(whole, TOKENS)[-1:], atol=tolerance)
    model.close()
    whole.close()


def tuning_for_default(device: Device, config: Any, kinds: set[TensorType]) -> Any:
    """Build as the tests do: PoCL's optimiser takes long."""
    return tuning_for(device, config, next(iter(kinds)))


def test_layers_on_two_devices(device: Device) -> None:
    parts = [
        (device, Part(range(1), embeds=True, ends=False)),
        (device, Part(range(1, 2), embeds=False, ends=True)),
    ]
    model = OpenClModel(
        CHECKPOINT,
        parts,
        kv_type=TensorType.F32,
        max_seq_len=96,
        tuning=tuning_for(device, CONFIG),
    )
    whole = expected()
    tolerance = TENSOR_ROUNDING if device.is_nvidia else ROUNDING
    np.testing.assert_allclose(logits_of(model, TOKENS), logits_of(whole, TOKENS), atol=tolerance)
    model.close()
    whole.close()


def test_blocks_of_the_cache_go_from_stages_to_stages(device: Device) -> None:
    def load_parts(*cuts: tuple[int, int]) -> OpenClModel:
        parts = [
            (device, Part(range(*cut), embeds=cut[0] == 0, ends=cut[1] == CONFIG.n_layers))
            for cut in cuts
        ]
        tuning = tuning_for(device, CONFIG)
        return OpenClModel(CHECKPOINT, parts, max_seq_len=96, tuning=tuning)

    source, target = load_parts((0, 1), (1, 2)), load_parts((0, 2))
    expected_rows = logits_of(source, TOKENS)
    assert source.block_format == target.block_format == "opencl/1 F16 layers 0-1"
    assert source.read_block(0).size == source.kv_bytes_per_token * 32
    target.write_block(2, source.read_block(0))
    chunk = Chunk(tuple(TOKENS[32:]), 32, (2, 1), len(TOKENS) - 32)
    np.testing.assert_allclose(
        target.forward(Batch((chunk,))), expected_rows[32:], atol=TENSOR_ROUNDING
    )
    for block, data in ((3, source.read_block(0)), (-1, source.read_block(0)), (0, b"")):
        with pytest.raises(BackendError, match="cache block"):
            target.write_block(block, np.frombuffer(data, np.uint8))
    source.close()
    target.close()


# --- what needs no device ---------------------------------------------------------------------


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencl, "choose_devices", lambda _: (fake_device(),))


@pytest.mark.usefixtures("unused")
def test_no_layer_on_a_device_is_the_cpus_model() -> None:
    model, whole = load(0.0), expected()
    assert isinstance(model, CpuModel)
    np.testing.assert_array_equal(logits_of(model, TOKENS), logits_of(whole, TOKENS))
    model.close()
    whole.close()


@pytest.mark.usefixtures("unused")
def test_a_type_that_neither_runs_is_refused() -> None:
    config = tiny_config(dim=256, ffn_dim=256, head_dim=64)
    checkpoint = MemoryCheckpoint(config, random_weights(config))
    checkpoint.tensors = {
        name: dataclasses.replace(info, type=TensorType.Q8_1)
        for name, info in checkpoint.tensors.items()
    }
    for share in (0.0, 0.5, 1.0):
        with pytest.raises(UnsupportedTypeError, match="Q8_1"):
            load(share, checkpoint=checkpoint)


def test_the_first_layers_give_hidden_states() -> None:
    first = cpu.load_model(
        CHECKPOINT, kv_type=TensorType.F32, max_seq_len=96, threads=1, first_layers=1
    )
    whole = expected()
    assert isinstance(first, CpuModel)
    assert first.kv_bytes_per_token * 2 == whole.kv_bytes_per_token
    assert first.hidden(Batch((chunk_of(TOKENS),))).shape == (40, CONFIG.dim)
    first.close()
    whole.close()
