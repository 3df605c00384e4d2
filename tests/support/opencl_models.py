"""Loading tiny models onto an OpenCL device, and the references that they must equal."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.tiny_models import MemoryCheckpoint

from pyrllama.models.llama import is_router
from pyrllama.opencl.layout import held_type
from pyrllama.opencl.model import OpenClModel
from pyrllama.opencl.parts import Part
from pyrllama.opencl.tuning import default_tuning
from pyrllama.quants import dequantize, quantize
from pyrllama.reference import ReferenceModel, ops
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from support.tiny_models import Weights

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.tuning import Tuning

TYPES = (TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0)
QUANTISED = (TensorType.Q8_0, TensorType.Q4_0)

each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)


def tuning_for(
    device: Device, config: ModelConfig, kind: TensorType | None = None, **changes: Any
) -> Tuning:
    """Return a device's sizes for tests: PoCL compiles tiny kernels far longer than they run.

    The persistent kernel needs PoCL's optimiser off, and runs there as a grid of one group.
    """
    tuning = dataclasses.replace(default_tuning(device, config, {kind} if kind else ()), **changes)
    if device.is_pocl:
        groups = 1 if tuning.persistent else tuning.groups
        tuning = dataclasses.replace(tuning, optimise=False, groups=groups)
    return tuning


@contextlib.contextmanager
def opencl_model(
    device: Device,
    config: ModelConfig,
    weights: Weights | Checkpoint,
    kind: TensorType | None = None,
    *,
    max_seq_len: int = 96,
    kv_type: TensorType = TensorType.F16,
    **changes: Any,
) -> Iterator[OpenClModel]:
    """Load a whole model onto one device, and close it in the end."""
    checkpoint = MemoryCheckpoint(config, weights) if isinstance(weights, dict) else weights
    model = OpenClModel(
        checkpoint,
        [(device, Part(range(config.n_layers), embeds=True, ends=True))],
        type=kind,
        kv_type=kv_type,
        max_seq_len=max_seq_len,
        tuning=tuning_for(device, config, kind, **changes),
    )
    try:
        yield model
    finally:
        model.close()


def rounded(values: NDArray[np.float32], kind: TensorType) -> NDArray[np.float32]:
    """Return what a matrix, or those of experts, are once they are held in a type."""
    cols = values.shape[-1]
    kind = held_type(TensorType.F32, cols, kind)
    return dequantize(kind, quantize(kind, values.reshape(-1, cols)), cols).reshape(values.shape)


def reference_of(
    config: ModelConfig,
    weights: Weights,
    kind: TensorType,
    n_blocks: int,
    *,
    int8: bool,
) -> ReferenceModel:
    """Return the reference on the weights as ``kind`` holds them, with a float16 cache.

    ``int8`` rounds activations as the products of one token do for quantised weights; those of
    a batch do not.
    """
    held = {
        name: rounded(values, kind) if values.ndim > 1 and not is_router(name) else values
        for name, values in weights.items()
    }
    matmul = _whole_blocks_as_int8 if int8 and kind in QUANTISED else ops.matmul
    return ReferenceModel(config, held, n_blocks, kv_dtype=np.float16, matmul=matmul)


def _whole_blocks_as_int8(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    return ops.matmul(x, w) if w.shape[1] % ops.ACTIVATION_BLOCK else ops.matmul_int8(x, w)
