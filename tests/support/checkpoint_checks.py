"""Compares what a checkpoint gives with what was written, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.model_config import ModelConfig

DTYPES: dict[TensorType, Any] = {
    TensorType.F32: np.float32,
    TensorType.F16: np.float16,
    TensorType.BF16: ml_dtypes.bfloat16,
}
"""Types of weights that need no quantisation, and NumPy's names for them."""


def check_checkpoint(
    checkpoint: Checkpoint, config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]
) -> None:
    """Compare the config, the names, and every bit of every tensor in the file's own type."""
    assert checkpoint.config == config
    assert set(checkpoint.tensors) == set(weights)
    for name, values in weights.items():
        tensor = checkpoint.read(name)
        assert tensor.info == checkpoint.tensors[name]
        assert tensor.info == TensorInfo(name, values.shape, tensor.info.type)
        assert tensor.data.flags.c_contiguous
        rows = values.reshape(-1, values.shape[-1])
        stored = rows.astype(DTYPES[tensor.info.type])
        np.testing.assert_array_equal(tensor.data, stored.view(np.uint8))
        checkpoint.release(name)
