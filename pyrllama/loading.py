"""From the name of a model to its weights in a backend: what every command does first."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyrllama.cache_size import most_tokens
from pyrllama.errors import SettingError, UnsupportedTypeError
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    import os

    from pyrllama.backend import Model
    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.memory import MemoryNeed
    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.plan import Demand, Plan

Progress = Callable[[int, int], None]
"""Called while weights load with the bytes done and the bytes in all."""

DEFAULT_MAX_SEQ_LEN = 1024
"""Tokens of context unless told otherwise, as in the original RLLaMA."""
CHAT_MAX_SEQ_LEN = 4096
"""The same for conversations, which grow."""

WEIGHT_TYPES = {
    member.name.lower(): member
    for member in (
        TensorType.F32,
        TensorType.F16,
        TensorType.BF16,
        TensorType.Q8_0,
        TensorType.Q4_0,
    )
}
"""The types that weights can be converted to at load, by name."""

KV_TYPES = {"f16": TensorType.F16, "f32": TensorType.F32, "q8_0": TensorType.Q8_0}
"""The types that the KV cache can have, by name."""


class Backend(enum.StrEnum):
    """Where the model runs."""

    CPU = "cpu"
    """The compiled kernels."""
    OPENCL = "opencl"
    """A GPU, or whatever else has an OpenCL driver."""
    REFERENCE = "reference"
    """The NumPy specification: slow, and computes in float32."""


def local_path(path: str | os.PathLike[str] | None, *, progress: bool) -> Path:
    """Return where a model lies on this machine; ``load`` says what the path may be.

    ``progress`` shows bars while it is fetched from the hub.
    """
    if path is None:
        from pyrllama.data import default_model_path  # noqa: PLC0415

        return default_model_path()
    path = Path(path)
    name = path.as_posix()
    if not name.startswith("hf:"):
        return path
    from pyrllama import hub  # noqa: PLC0415

    return hub.pull(hub.parse_reference(name), progress=progress)


def load_model(
    checkpoint: Checkpoint,
    *,
    backend: str,
    weight_type: TensorType | None,
    kv_type: TensorType = TensorType.F16,
    max_seq_len: int,
    cache_tokens: int | None = None,
    threads: int | None,
    progress: Progress | None,
    check_memory: bool = True,
    on_memory: Callable[[MemoryNeed | Plan], None] | None = None,
    opencl_devices: Sequence[int] | None = None,
    gpu_share: float | None = None,
) -> Model:
    """Load the weights of an open checkpoint into a backend; see ``load``.

    ``cache_tokens`` is how many tokens the KV cache should hold, by default ``max_seq_len`` and
    never fewer; it holds less where memory is short, but for ``check_memory`` False.
    """
    from pyrllama import memory  # noqa: PLC0415

    if threads is not None and threads < 1:
        raise SettingError("threads", threads, "a whole number from 1 upwards")
    if backend not in set(Backend):
        raise SettingError("backend", str(backend), "one of " + ", ".join(Backend))
    wanted = max(max_seq_len, cache_tokens or 0)
    if backend == Backend.OPENCL:
        return _load_opencl(
            checkpoint,
            Placement(
                opencl_devices, gpu_share, weight_type, kv_type, max_seq_len, wanted, threads
            ),
            progress,
            on_memory,
        )

    def need_of(weigh: Callable[..., MemoryNeed], n_tokens: int) -> MemoryNeed:
        config, tensors = checkpoint.config, checkpoint.tensors.values()
        compiled = backend == Backend.CPU
        return weigh(config, tensors, weight_type, n_tokens, compiled=compiled, kv_type=kv_type)

    tokens = wanted
    if check_memory:
        tokens = most_tokens(max_seq_len, wanted, lambda n: need_of(memory.estimate, n).fits)
    need = need_of(memory.check_memory if check_memory else memory.estimate, tokens)
    if on_memory:
        on_memory(need)
    if backend == Backend.REFERENCE:
        from pyrllama.reference.backend import ReferenceBackend  # noqa: PLC0415

        return ReferenceBackend(checkpoint, max_seq_len, weight_type, tokens)
    _check_types(checkpoint)
    from pyrllama import cpu  # noqa: PLC0415

    return cpu.load_model(
        checkpoint,
        type=weight_type,
        kv_type=kv_type,
        max_seq_len=max_seq_len,
        cache_tokens=tokens,
        threads=threads,
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """What a model on OpenCL devices is loaded with."""

    devices: Sequence[int] | None
    gpu_share: float | None
    weight_type: TensorType | None
    kv_type: TensorType
    max_seq_len: int
    cache_tokens: int
    threads: int | None


def _load_opencl(
    checkpoint: Checkpoint,
    placement: Placement,
    progress: Progress | None,
    on_memory: Callable[[MemoryNeed | Plan], None] | None,
) -> Model:
    """Put the last layers on devices, as many as asked for or as fit, the others on the CPU."""
    from pyrllama.opencl import OpenClModel, choose_devices  # noqa: PLC0415
    from pyrllama.opencl.plan import Demand, make_plan  # noqa: PLC0415
    from pyrllama.opencl.supported import check_supported  # noqa: PLC0415

    weight_type, kv_type = placement.weight_type, placement.kv_type
    max_seq_len = placement.max_seq_len
    check_supported(checkpoint.config)
    demand = Demand(checkpoint, weight_type, kv_type, max_seq_len, max_seq_len)
    devices = choose_devices(placement.devices)
    plan = make_plan(demand, devices, placement.gpu_share)
    tokens = most_tokens(
        max_seq_len,
        placement.cache_tokens,
        lambda n: _has_room(plan, replace(demand, cache_tokens=n)),
    )
    if tokens > max_seq_len:
        plan = make_plan(replace(demand, cache_tokens=tokens), devices, placement.gpu_share)
    if on_memory:
        on_memory(plan)
    if plan.cpu_layers:
        _check_types(checkpoint)
    parts = [(need.device, need.part) for need in plan.needs]
    opencl = None
    if parts:
        opencl = OpenClModel(
            checkpoint,
            parts,
            type=weight_type,
            kv_type=kv_type,
            max_seq_len=max_seq_len,
            cache_tokens=tokens,
            progress=progress,
        )
        if not plan.cpu_layers:
            return opencl
    from pyrllama import cpu  # noqa: PLC0415
    from pyrllama.split import SplitModel  # noqa: PLC0415

    try:
        first = cpu.load_model(
            checkpoint,
            type=weight_type,
            kv_type=kv_type,
            max_seq_len=max_seq_len,
            cache_tokens=tokens,
            threads=placement.threads,
            progress=progress,
            first_layers=plan.cpu_layers if opencl else None,
        )
    except BaseException:
        if opencl:
            opencl.close()
        raise
    return SplitModel(first, opencl) if opencl else first


def _has_room(plan: Plan, demand: Demand) -> bool:
    """Tell whether a larger cache leaves every layer where the plan has it."""
    from pyrllama import memory  # noqa: PLC0415

    if not plan.has_room(demand):
        return False
    config, tensors = demand.checkpoint.config, demand.checkpoint.tensors.values()
    need = memory.estimate(
        config,
        tensors,
        demand.weight_type,
        demand.cache_tokens,
        compiled=True,
        kv_type=demand.kv_type,
    )
    return need.free is None or need.total * plan.cpu_layers <= need.free * plan.n_layers


def _check_types(checkpoint: Checkpoint) -> None:
    """Refuse a type that no kernel reads."""
    from pyrllama.models.llama import expected_tensors  # noqa: PLC0415
    from pyrllama.quants import RUNNABLE, runnable_names  # noqa: PLC0415

    for name in expected_tensors(checkpoint.config):
        info = checkpoint.tensors.get(name)
        if info is not None and info.type not in RUNNABLE:
            raise UnsupportedTypeError(
                checkpoint.path,
                f"the tensor {name} is stored as {info.type.name}, which no weights are; the types "
                f"that run are {runnable_names()}",
            )


def parse_weight_type(name: str | TensorType | None) -> TensorType | None:
    """Return the type that ``quantize`` names; raises ``SettingError`` for an unknown one."""
    if name is None:
        return None
    if isinstance(name, TensorType):
        name = name.name
    if name.lower() not in WEIGHT_TYPES:
        raise SettingError("quantize", name, "one of " + ", ".join(WEIGHT_TYPES))
    return WEIGHT_TYPES[name.lower()]


def parse_kv_type(name: str | TensorType) -> TensorType:
    """Return the type of the KV cache that a name means; raises ``SettingError`` for another."""
    if isinstance(name, TensorType):
        name = name.name
    if name.lower() not in KV_TYPES:
        raise SettingError("kv_type", name, "one of " + ", ".join(KV_TYPES))
    return KV_TYPES[name.lower()]


def context_length(
    config: ModelConfig, wanted: int | None, usual: int = DEFAULT_MAX_SEQ_LEN
) -> int:
    """Return how many tokens a sequence may have; raises ``SettingError`` beyond the model's.

    ``usual`` is taken if nothing is wanted and the model has as many.
    """
    if wanted is None:
        return min(config.context_length, usual)
    if not 1 <= wanted <= config.context_length:
        raise SettingError(
            "max_seq_len", wanted, f"from 1 to the model's context of {config.context_length}"
        )
    return wanted
