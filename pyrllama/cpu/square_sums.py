"""Memory for the sums of squares of what a model's matrices multiply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import InputSquares
from pyrllama.cpu.formats import BLOCK
from pyrllama.cpu.scratch import aligned_zeros, round_up
from pyrllama.models.llama import ROUTER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

SQUARE_FIELDS = (
    "attn_squares",
    "attended_squares",
    "ffn_squares",
    "expert_squares",
    "hidden_squares",
    "expert_tokens",
)
"""The fields of a LAYER record that point to sums and counts; 0 counts nothing."""


class SquareSums:
    """Zeroed sums for every input of a model; ``output`` names its vocabulary projection.

    Matrices that multiply the same input have the same sums in ``squares``; ``layers``, by the
    fields of LAYER records, and ``output`` are their addresses.
    """

    def __init__(self, config: ModelConfig, output: str) -> None:
        self._config = config
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._tokens: dict[str, NDArray[np.int64]] = {}
        self.layers = [self._layer(f"blk.{index}.") for index in range(config.n_layers)]
        self.output = self._take([output], config.dim)
        self.squares = InputSquares(self._sums, self._tokens)

    def _layer(self, layer: str) -> dict[str, int]:
        """Return the fields of a layer's record that count."""
        config = self._config
        queries = [f"{layer}attn_{name}.weight" for name in "qkv"]
        fields = {
            "attn_squares": self._take(queries, config.dim),
            "attended_squares": self._take([f"{layer}attn_output.weight"], config.q_dim),
        }
        kind = "" if config.experts is None else "_exps"
        gate, up, down = (f"{layer}ffn_{name}{kind}.weight" for name in ("gate", "up", "down"))
        if config.experts is None:
            return fields | {
                "ffn_squares": self._take([gate, up], config.dim),
                "hidden_squares": self._take([down], config.ffn_dim),
            }
        n = config.experts.count
        tokens = np.zeros(n, np.int64)
        self._tokens |= dict.fromkeys((gate, up, down), tokens)
        return fields | {
            "ffn_squares": self._take([f"{layer}{ROUTER}.weight"], config.dim),
            "expert_squares": self._take([gate, up], n, config.dim),
            "hidden_squares": self._take([down], n, config.ffn_dim),
            "expert_tokens": tokens.ctypes.data,
        }

    def _take(self, matrices: list[str], *shape: int) -> int:
        """Return the address of sums and give them to matrices; every row begins a cache line."""
        *experts, cols = shape
        sums = aligned_zeros((*experts, round_up(cols, BLOCK)), np.float64)
        self._sums |= dict.fromkeys(matrices, sums[..., :cols])
        return int(sums.ctypes.data)
