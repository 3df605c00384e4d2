"""The sizes that a device and a model are given without being asked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from support.opencl_devices import fake_device
from support.tiny_models import tiny_config

from pyrllama.errors import DeviceError
from pyrllama.model_config import Experts
from pyrllama.opencl import tuning
from pyrllama.opencl.device import Feature
from pyrllama.opencl.layout import extent_of
from pyrllama.opencl.local_memory import local_memory
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Collection

NVIDIA = {Feature.INLINE_PTX, Feature.TENSOR_CORES, Feature.WARPGROUPS, Feature.GRID_BARRIER}


@pytest.mark.parametrize(
    ("kinds", "loads"),
    [
        ({TensorType.F16}, 8),
        ({TensorType.F16, TensorType.BF16}, 8),
        ({TensorType.F16, TensorType.Q8_0}, 8),
        ({TensorType.Q4_0}, 4),
        ({TensorType.Q4_0, TensorType.F16}, 4),
        ((), 4),
    ],
)
def test_nvidia(monkeypatch: pytest.MonkeyPatch, kinds: Collection[TensorType], loads: int) -> None:
    monkeypatch.setattr(tuning, "features", lambda _: NVIDIA)
    chosen = tuning.default_tuning(fake_device(compute_units=132), tiny_config(dim=4096), kinds)
    assert chosen.loads == loads
    assert (chosen.groups, chosen.group) == (132, 512)
    assert (chosen.tensor_cores, chosen.warpgroups, chosen.tensor_attention) == (True,) * 3
    assert chosen.few_tokens == 32
    assert chosen.persistent


def test_routers_in_float32_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "features", lambda _: NVIDIA)
    config, kinds = tiny_config(dim=4096), {TensorType.F16, TensorType.F32}
    with_experts = dataclasses.replace(config, experts=Experts(4, 2))
    assert tuning.default_tuning(fake_device(), with_experts, kinds).loads == 8
    assert tuning.default_tuning(fake_device(), with_experts, {TensorType.F32}).loads == 4
    assert tuning.default_tuning(fake_device(), config, kinds).loads == 4


@pytest.mark.parametrize(
    ("dim", "kind", "loads"),
    [
        (64, TensorType.F16, 1),
        (2048, TensorType.Q4_0, 2),
        (2048, TensorType.F16, 8),
        (5120, TensorType.Q4_0, 5),
        (5120, TensorType.F16, 7),
        (8192, TensorType.Q8_0, 8),
    ],
)
def test_loads_suit_the_length_of_rows(
    monkeypatch: pytest.MonkeyPatch, dim: int, kind: TensorType, loads: int
) -> None:
    monkeypatch.setattr(tuning, "features", lambda _: NVIDIA)
    assert tuning.default_tuning(fake_device(), tiny_config(dim=dim), {kind}).loads == loads


@pytest.mark.parametrize(
    ("n_heads", "splits"),
    [(32, 4), (40, 3), (52, 2), (64, 2), (128, 1), (256, 1), (8, tuning.MAX_SPLITS)],
)
def test_a_group_for_each_head_and_part_of_positions(
    monkeypatch: pytest.MonkeyPatch, n_heads: int, splits: int
) -> None:
    monkeypatch.setattr(tuning, "features", lambda _: NVIDIA)
    config = tiny_config(n_heads=n_heads)
    assert tuning.default_tuning(fake_device(compute_units=132), config).splits == splits


@pytest.mark.parametrize(
    ("loads", "kinds", "fills"),
    [
        (4, {TensorType.Q4_0}, False),
        (8, {TensorType.F16}, True),
        (8, {TensorType.Q8_0}, True),
        (2, {TensorType.Q6_K}, False),
        (4, {TensorType.Q4_0, TensorType.Q6_K}, True),
    ],
)
def test_loads_that_leave_no_registers(
    loads: int, kinds: Collection[TensorType], fills: bool
) -> None:
    assert tuning.fills_registers(tuning.Tuning(loads=loads), kinds) is fills


def test_attention_on_tensor_cores_needs_room_and_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "features", lambda _: NVIDIA)
    for head_dim, fits in ((128, True), (256, False)):
        chosen = tuning.default_tuning(fake_device(), tiny_config(head_dim=head_dim))
        assert tuning.tensor_attention(chosen, TensorType.F16) is fits
        assert not tuning.tensor_attention(chosen, TensorType.F32)


def test_another_gpu() -> None:
    chosen = tuning.default_tuning(fake_device(), tiny_config(), {TensorType.F16})
    assert (chosen.group, chosen.groups, chosen.loads) == (128, 32, 4)
    assert not chosen.nvidia
    assert not chosen.persistent


def test_groups_that_are_too_small() -> None:
    with pytest.raises(DeviceError, match="work-groups of 16 work-items, but the kernels need 32"):
        tuning.default_tuning(fake_device(max_group=16), tiny_config())


@pytest.mark.parametrize(
    ("dim", "kind", "holds"),
    [
        (4096, TensorType.F16, True),
        (16384, TensorType.F16, False),  # 64 KiB of float32
        (16384, TensorType.Q8_0, True),  # 20 KiB of int8, scales and sums
        (65536, TensorType.Q8_0, False),
    ],
)
def test_rows_that_local_memory_holds(dim: int, kind: TensorType, holds: bool) -> None:
    config = tiny_config(dim=dim)
    chosen = tuning.default_tuning(fake_device(), config)
    memory = local_memory(fake_device(), config, chosen)
    assert memory.holds_row(extent_of(kind, (2, dim))) is holds
