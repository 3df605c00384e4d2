"""Memory for the sums of squares of what a model's matrices multiply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.cpu.formats import BLOCK
from pyrllama.cpu.scratch import aligned_zeros, round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

LAYER_INPUTS = {
    "attn_squares": ("attn_q", "attn_k", "attn_v"),
    "attended_squares": ("attn_output",),
    "ffn_squares": ("ffn_gate", "ffn_up"),
    "hidden_squares": ("ffn_down",),
}
"""The fields of a LAYER record, and the matrices whose inputs each counts."""


class SquareSums:
    """Zeroed sums for every input of a model; ``output`` names its vocabulary projection.

    ``by_matrix`` are the sums by the names of matrices, ``(cols,)``, of which those that
    multiply the same input have the same; ``layers`` and ``output`` are their addresses.
    """

    def __init__(self, config: ModelConfig, output: str) -> None:
        self.by_matrix: dict[str, NDArray[np.float64]] = {}
        sizes = (config.dim, config.q_dim, config.dim, config.ffn_dim)
        self.layers = [
            {
                field: self._take([f"blk.{layer}.{name}.weight" for name in names], size)
                for (field, names), size in zip(LAYER_INPUTS.items(), sizes, strict=True)
            }
            for layer in range(config.n_layers)
        ]
        self.output = self._take([output], config.dim)

    def _take(self, matrices: list[str], n: int) -> int:
        """Return the address of ``n`` sums and give them to matrices."""
        sums = aligned_zeros((round_up(n, BLOCK),), np.float64)
        self.by_matrix |= dict.fromkeys(matrices, sums[:n])
        return int(sums.ctypes.data)
