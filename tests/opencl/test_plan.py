"""Which layers go to which device, before a weight is read."""

from __future__ import annotations

import dataclasses
import math

import pytest
from support.opencl_devices import fake_device

from pyrllama.checkpoints.random import SHAPES, RandomCheckpoint
from pyrllama.errors import NotEnoughMemoryError, SettingError
from pyrllama.models.llama import is_router
from pyrllama.opencl.plan import Demand, Plan, make_plan
from pyrllama.tensors import TensorType

GB = 10**9


def layers_of(plan: Plan) -> list[tuple[int, int]]:
    return [(need.part.layers.start, need.part.layers.stop) for need in plan.needs]


def demand(kind: TensorType = TensorType.Q4_0, kv_type: TensorType = TensorType.F16) -> Demand:
    return Demand(RandomCheckpoint(SHAPES["7b"], kind), None, kv_type, 512, 512)


def test_a_model_that_fits_goes_to_the_device_whole() -> None:
    plan = make_plan(demand(), [fake_device(memory=24 * GB)], None)
    (need,) = plan.needs
    assert layers_of(plan) == [(0, 32)]
    assert plan.cpu_layers == 0
    assert (need.part.embeds, need.part.ends) == (True, True)
    assert need.kv_cache == 512 * 2 * 2 * 32 * 4096
    assert 3.7 * GB < need.weights < 3.9 * GB
    assert str(plan).startswith("runs 32 layers on OpenCL device 0: Abacus 0 (Beads), taking ")


def test_types_without_kernels_become_q8_0() -> None:
    stored = demand(TensorType.Q8_0)
    stored.checkpoint.tensors = {
        name: dataclasses.replace(info, type=TensorType.IQ3_S) if len(info.shape) == 2 else info
        for name, info in stored.checkpoint.tensors.items()
    }
    devices = [fake_device(memory=24 * GB)]
    whole, half = (make_plan(stored, devices, share) for share in (None, 0.0))
    assert (
        whole.needs[0].weights == make_plan(demand(TensorType.Q8_0), devices, None).needs[0].weights
    )
    assert str(whole).endswith("; there its IQ3_S become Q8_0, as OpenCL has no kernels for them")
    assert "become" not in str(half)
    asked = dataclasses.replace(stored, weight_type=TensorType.Q4_0)
    assert not make_plan(asked, devices, None).converted


def test_all_experts_count_and_their_routers_as_float32() -> None:
    checkpoint = RandomCheckpoint(SHAPES["30b-a3b"], TensorType.Q4_0)
    matrices = [info for info in checkpoint.tensors.values() if len(info.shape) > 1]
    n_router = sum(math.prod(info.shape) for info in matrices if is_router(info.name))
    n_quantised = sum(math.prod(info.shape) for info in matrices) - n_router
    checkpoint.tensors = {
        name: dataclasses.replace(info, type=TensorType.IQ3_S) if is_router(name) else info
        for name, info in checkpoint.tensors.items()
    }
    plan = make_plan(
        Demand(checkpoint, None, TensorType.F16, 512, 512), [fake_device(memory=80 * GB)], None
    )
    assert plan.needs[0].weights == n_quantised * 18 // 32 + n_router * 4
    assert plan.needs[0].working > 4 * 512 * 8 * (2 * 2048 + 3 * 768)
    assert not plan.converted


def test_as_many_of_the_last_layers_as_fit() -> None:
    plan = make_plan(demand(), [fake_device(memory=2 * GB)], None)
    (need,) = plan.needs
    assert 0 < plan.cpu_layers < 32
    assert layers_of(plan) == [(plan.cpu_layers, 32)]
    assert (need.part.embeds, need.part.ends) == (False, True)
    assert need.fits
    more = make_plan(demand(), [fake_device(memory=100 * GB)], (33 - plan.cpu_layers) / 32)
    assert more.needs[0].total > 0.92 * 2 * GB
    assert str(plan).startswith(f"runs {plan.cpu_layers} layers on the CPU and ")


def test_several_devices_share_by_their_memory() -> None:
    devices = [fake_device(0, 8 * GB), fake_device(1, 24 * GB)]
    plan = make_plan(demand(), devices, None)
    assert layers_of(plan) == [(0, 8), (8, 32)]
    first, last = (need.part for need in plan.needs)
    assert (first.embeds, first.ends, last.embeds, last.ends) == (True, False, False, True)


@pytest.mark.parametrize(("share", "layers"), [(0.0, []), (0.5, [(16, 32)]), (1.0, [(0, 32)])])
def test_a_share_that_is_asked_for(share: float, layers: list[tuple[int, int]]) -> None:
    assert layers_of(make_plan(demand(), [fake_device(memory=24 * GB)], share)) == layers


def test_a_share_that_does_not_fit_is_refused() -> None:
    with pytest.raises(NotEnoughMemoryError, match="lower --percentage-to-gpu"):
        make_plan(demand(), [fake_device(memory=2 * GB)], 1.0)


def test_nothing_fits() -> None:
    plan = make_plan(demand(), [fake_device(memory=GB // 100)], None)
    assert plan == Plan((), 32)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share(share: float) -> None:
    with pytest.raises(SettingError, match="percentage-to-gpu"):
        make_plan(demand(), [fake_device()], share)


def test_a_cache_type_that_does_not_run() -> None:
    with pytest.raises(SettingError, match="kv_type"):
        make_plan(dataclasses.replace(demand(), kv_type=TensorType.Q4_0), [fake_device()], None)


def test_a_cache_of_more_than_a_context() -> None:
    asked = dataclasses.replace(demand(), cache_tokens=4 * 512)
    (need,) = make_plan(asked, [fake_device(memory=24 * GB)], None).needs
    assert need.kv_cache == 4 * 512 * 2 * 2 * 32 * 4096
    one = make_plan(demand(), [fake_device(memory=5 * GB)], None)
    assert one.cpu_layers == 0
    assert one.has_room(demand())
    assert not one.has_room(asked)  # it would push layers to the CPU
    small_buffers = fake_device(memory=24 * GB, max_buffer=GB)
    assert make_plan(asked, [small_buffers], None).cpu_layers == 0
    assert not make_plan(demand(), [small_buffers], None).has_room(asked)  # a cache is one buffer
    assert make_plan(asked, [fake_device(memory=5 * GB)], None).cpu_layers > 0
