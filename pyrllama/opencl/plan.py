"""Which layers of a model run on which device, worked out before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrllama.core import blocks_for
from pyrllama.errors import NotEnoughMemoryError, SettingError
from pyrllama.models.llama import is_router
from pyrllama.opencl.batch import COLUMNS
from pyrllama.opencl.experts import feed_forward_bytes
from pyrllama.opencl.layout import BLOCK, FLOAT, is_converted, round_up
from pyrllama.opencl.model import MAX_BATCH_TOKENS, check_kv_type, part_bytes
from pyrllama.opencl.parts import Part, block_bytes
from pyrllama.opencl.tuning import default_tuning
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.opencl.device import Device
    from pyrllama.tensors import TensorType

USABLE = 0.92
"""Of a device's memory; the driver and the display take some of it, and OpenCL does not say how
much."""


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """Bytes that a part of the model takes on its device."""

    device: Device
    part: Part
    weights: int
    kv_cache: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.working

    @property
    def fits(self) -> bool:
        """Whether the device has that much, as far as OpenCL tells."""
        return self.total <= self.device.memory * USABLE

    def __str__(self) -> str:
        return (
            f"{len(self.part.layers)} layers on OpenCL device {self.device}, taking "
            f"{format_bytes(self.total)} of {format_bytes(self.device.memory)} (weights "
            f"{format_bytes(self.weights)}, KV cache {format_bytes(self.kv_cache)}, working "
            f"{format_bytes(self.working)})"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts on devices, in order; the layers before them stay on the CPU."""

    needs: tuple[DeviceNeed, ...]
    n_layers: int
    converted: tuple[TensorType, ...] = ()
    """Stored types that devices hold as Q8_0, because they have no kernels for them."""

    @property
    def cpu_layers(self) -> int:
        """Layers that the CPU computes first."""
        return self.n_layers - sum(len(need.part.layers) for need in self.needs)

    def has_room(self, demand: Demand) -> bool:
        """Tell whether the devices could take their parts with the cache of another demand."""
        needs = [_need(demand, need.device, need.part) for need in self.needs]
        return all(need.fits and need.kv_cache <= need.device.max_buffer for need in needs)

    def __str__(self) -> str:
        parts = [str(need) for need in self.needs]
        if self.cpu_layers:
            parts.insert(0, f"{self.cpu_layers} layers on the CPU")
        text = "runs " + " and ".join(parts)
        if self.needs and self.converted:
            names = ", ".join(type_.name for type_ in self.converted)
            text += f"; there its {names} become Q8_0, as OpenCL has no kernels for them"
        return text


@dataclass(frozen=True, slots=True)
class Demand:
    """What a plan is made for."""

    checkpoint: Checkpoint
    weight_type: TensorType | None
    kv_type: TensorType
    max_seq_len: int
    cache_tokens: int
    """Tokens that the KV cache holds, ``max_seq_len`` or more."""

    @property
    def n_blocks(self) -> int:
        """Blocks of the KV cache."""
        return blocks_for(self.cache_tokens)


def make_plan(demand: Demand, devices: Sequence[Device], share: float | None) -> Plan:
    """Put ``share`` of the layers, from 0 to 1, on the devices; None is as many as fit.

    The last layers go to the devices, shared out by their memory.  Raises ``SettingError`` for
    another share, ``NotEnoughMemoryError`` where what is asked for does not fit.
    """
    check_kv_type(demand.kv_type)
    n_layers = demand.checkpoint.config.n_layers
    if share is not None and not 0.0 <= share <= 1.0:
        raise SettingError("percentage-to-gpu", share, "a number from 0 (none) to 1 (all layers)")
    wanted = n_layers if share is None else round(share * n_layers)
    for count in range(wanted, 0, -1):
        plan = Plan(tuple(_needs(demand, devices, count)), n_layers, _converted(demand))
        if all(need.fits for need in plan.needs):
            return plan
        if share is not None:
            raise NotEnoughMemoryError(
                f"the model {plan}; lower --percentage-to-gpu, choose a smaller type with "
                f"--quantize, or lower --max-seq-len"
            )
    return Plan((), n_layers)


def _converted(demand: Demand) -> tuple[TensorType, ...]:
    """Return the types of matrices that devices cannot hold as they are stored."""
    if demand.weight_type is not None:
        return ()
    tensors = demand.checkpoint.tensors.values()
    matrices = (info for info in tensors if len(info.shape) > 1 and not is_router(info.name))
    return tuple(sorted({info.type for info in matrices if is_converted(info.type)}))


def _needs(demand: Demand, devices: Sequence[Device], count: int) -> list[DeviceNeed]:
    """Cut the last ``count`` layers into runs by the devices' memory."""
    n_layers, total = demand.checkpoint.config.n_layers, sum(d.memory for d in devices)
    first, seen, needs = n_layers - count, 0, []
    for device in devices:
        seen += device.memory
        end = n_layers - count + round(count * seen / total)
        if end > first:
            part = Part(range(first, end), embeds=first == 0, ends=end == n_layers)
            needs.append(_need(demand, device, part))
        first = end
    return needs


def _need(demand: Demand, device: Device, part: Part) -> DeviceNeed:
    config = demand.checkpoint.config
    return DeviceNeed(
        device,
        part,
        weights=part_bytes(demand.checkpoint, part, demand.weight_type),
        kv_cache=demand.n_blocks * block_bytes(config, len(part.layers), demand.kv_type),
        working=_working_bytes(demand, device, part),
    )


def _working_bytes(demand: Demand, device: Device, part: Part) -> int:
    """Return the bytes of a batch's activations, logits and words, and of the rotations."""
    config, max_seq_len = demand.checkpoint.config, demand.max_seq_len
    rows = min(MAX_BATCH_TOKENS, max_seq_len)
    splits = default_tuning(device, config).splits
    numbers = (
        config.dim
        + config.q_dim
        + 2 * config.kv_dim
        + splits * (round_up(config.q_dim, BLOCK) + 2 * config.n_heads)
        + max(config.dim, config.q_dim)
        + config.vocab_size * part.ends
        + COLUMNS
        + demand.n_blocks
    )
    of_network = sum(feed_forward_bytes(config, rows).values())
    return of_network + FLOAT * (rows * numbers + max_seq_len * config.head_dim)
