"""What some models do to heads before they are turned: biases, and norms of queries and keys."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.opencl.weights import read_vector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.model_config import ModelConfig


def has_extras(config: ModelConfig) -> bool:
    """Whether products leave heads that are not finished."""
    return config.attention_bias or config.qk_norm


def head_extras(checkpoint: Checkpoint, layers: range) -> NDArray[np.float32]:
    """Return biases of all heads and then the two norms, layer by layer, as ``heads.cl`` has them.

    ``(layers, numbers)``, float32.
    """
    config = checkpoint.config
    sizes: dict[str, int] = {}
    if config.attention_bias:
        sizes |= {"q.bias": config.q_dim, "k.bias": config.kv_dim, "v.bias": config.kv_dim}
    if config.qk_norm:
        sizes |= dict.fromkeys(("q_norm.weight", "k_norm.weight"), config.head_dim)
    vectors = [
        read_vector(checkpoint, f"blk.{layer}.attn_{name}", size)
        for layer, (name, size) in itertools.product(layers, sizes.items())
    ]
    return np.concatenate(vectors).reshape(len(layers), -1)
