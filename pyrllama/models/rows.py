"""The order of rows of queries and keys: which two numbers of a head RoPE turns together.

Meta's files and the kernels have them as neighbours; Hugging Face's files, and GGUF files of
Qwen's models, half a head apart.  A reader permutes rows as they are read.  Rows are whole,
whatever their type, so permuting changes no bit of them.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

_ROTATED = re.compile(r"blk\.\d+\.attn_([qk])(_norm)?\.(?:weight|bias)", re.ASCII)


class Pairing(enum.Enum):
    """Where the two numbers of a head that RoPE turns together are."""

    NEIGHBOURS = enum.auto()
    """``2i`` and ``2i + 1``: the order of the kernels."""
    HALVES = enum.auto()
    """``i`` and ``i + head_dim / 2``."""


def rotated_heads(name: str, config: ModelConfig) -> int | None:
    """Return how many heads a tensor of queries or keys has, by its name; None for others.

    Matrices, biases and the norms of a head are meant: a norm is one head's.
    """
    found = _ROTATED.fullmatch(name)
    if found is None:
        return None
    if found[2]:
        return 1
    return config.n_heads if found[1] == "q" else config.n_kv_heads


def to_neighbours(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """Return which row of the order by halves becomes each row of that of neighbours."""
    halves = np.arange(n_rows).reshape(n_heads, 2, -1)  # (heads, halves, pairs)
    return halves.swapaxes(1, 2).reshape(n_rows)


def to_halves(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """Return which row of the order of neighbours becomes each row of that by halves."""
    neighbours = np.arange(n_rows).reshape(n_heads, -1, 2)  # (heads, pairs, two)
    return neighbours.swapaxes(1, 2).reshape(n_rows)


def take_rows(data: NDArray[np.uint8], order: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return stored rows, ``(rows, bytes per row)``, in another order.

    A vector is one row, of which the numbers are reordered; they have as many bytes each as
    there are bytes to a number of the order.
    """
    if len(data) == len(order):
        return np.asarray(data[order])
    numbers = data.reshape(len(order), -1)
    return np.ascontiguousarray(numbers[order]).reshape(data.shape)
