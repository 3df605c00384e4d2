"""Loading tiny models into the CPU backend, and the references that they must equal."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.kernels import QUANTISED, rounded, use_isa
from support.tiny_models import MemoryCheckpoint

from pyrllama.cpu.model import CpuModel, load_model
from pyrllama.cpu.weights import packed_type
from pyrllama.reference import ReferenceModel, ops
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from support.tiny_models import Weights

    from pyrllama.cpu.target import Isa
    from pyrllama.model_config import ModelConfig


@contextlib.contextmanager
def cpu_model(
    config: ModelConfig,
    weights: Weights,
    isa: Isa,
    kind: TensorType | None = None,
    *,
    threads: int = 1,
    max_seq_len: int = 96,
    kv_type: TensorType = TensorType.F16,
) -> Iterator[CpuModel]:
    """Load weights into the CPU backend on an instruction set, and close it in the end."""
    with pytest.MonkeyPatch.context() as patch:
        use_isa(patch, isa)
        model = load_model(
            MemoryCheckpoint(config, weights),
            type=kind,
            kv_type=kv_type,
            max_seq_len=max_seq_len,
            threads=threads,
        )
    try:
        yield model
    finally:
        model.close()


def reference_of(
    config: ModelConfig, weights: Weights, kind: TensorType, n_blocks: int
) -> ReferenceModel:
    """Return the reference on the weights as ``kind`` holds them, with a float16 cache."""
    tensors = MemoryCheckpoint(config, weights).tensors
    held = dict(weights)
    for name, values in weights.items():
        if values.ndim > 1:
            rows = rounded(values.reshape(-1, values.shape[-1]), packed_type(tensors[name], kind))
            held[name] = rows.reshape(values.shape)
    matmul = matmul_of_whole_blocks if kind in QUANTISED else ops.matmul
    return ReferenceModel(config, held, n_blocks, kv_dtype=np.float16, matmul=matmul)


def matmul_of_whole_blocks(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply with int8 activations, but where columns are no whole blocks (held in F16)."""
    return ops.matmul(x, w) if w.shape[1] % ops.ACTIVATION_BLOCK else ops.matmul_int8(x, w)
