"""What launches of one token and of a batch have in common."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyrllama.opencl.heads import has_extras
from pyrllama.opencl.layout import BLOCK, ROW_ALIGN, round_up
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.tuning import Tuning
    from pyrllama.opencl.weights import Matrix

TILE_GROUP, TILE_ROWS, TILE_TOKENS = 64, 32, 32
"""Of the portable tile product; see ``kernels/tile.cl``."""
AS_FLOATS, AS_HALVES = 0, 1
"""Orders of the activations that a product reads; others are for wide tiles, see ``rows.cl``."""


class Rows(enum.Enum):
    """Which rows of a batch a launch is for; without any it is left out."""

    TOKENS = enum.auto()
    OUTPUTS = enum.auto()
    """Those whose logits are wanted."""
    SINGLE = enum.auto()
    """All tokens, if some chunk has only one."""
    RUNS = enum.auto()
    """All tokens, if some chunk has several."""


@dataclass(frozen=True, slots=True)
class BatchLaunch:
    """A launch whose groups grow with the rows of a batch."""

    launch: Launch
    rows_at_once: int = 1
    rows: Rows = Rows.TOKENS

    def sized(self, counts: dict[Rows, int]) -> tuple[Launch, int]:
        """Return the launch, and how many times its groups so many rows need."""
        return self.launch, -(-counts[self.rows] // self.rows_at_once)


class Tile(NamedTuple):
    """The sizes of a tile product."""

    group: int
    """Work-items."""
    rows: int
    """Of the matrix."""
    tokens: int
    order: int
    """Of the activations that it reads."""


def tile_of(tuning: Tuning, kind: TensorType) -> Tile:
    """Return the tiles in which matrices of a type are multiplied."""
    if tuning.tensor_cores and kind is not TensorType.F32:
        return Tile(tuning.tensor_group, tuning.tensor_rows, tuning.tensor_tokens, AS_HALVES)
    return Tile(TILE_GROUP, TILE_ROWS, TILE_TOKENS, AS_FLOATS)


def embed(stage: Stage, program: Program) -> Launch:
    """Return the launch that unpacks the embedding of a token, or of each of a batch."""
    (matrix,) = stage.matrices("embedding")
    units, scales, _, n_units = matrix.arguments
    stride = np.int32(round_up(stage.config.dim, BLOCK))
    arguments = units, scales, n_units, stage.buffer("batch"), stage.buffer("x"), stride
    return program.launch(f"embed_{suffix(matrix)}", 1, stage.tuning.group, *arguments)


def activate(stage: Stage, program: Program, order: int, rows: int = 1) -> Launch:
    """Return the launch that makes SwiGLU of gates and ups, so many rows for each token."""
    ffn_dim = stage.config.ffn_dim
    sizes = ffn_dim, round_up(2 * ffn_dim, BLOCK), round_up(ffn_dim, ROW_ALIGN), order
    buffers = stage.buffer("gate_up"), stage.buffer("hidden_rows")
    return program.launch(
        "swiglu_rows", rows, stage.tuning.group, *buffers, *(np.int32(n) for n in sizes)
    )


def attention_arguments(stage: Stage, index: int) -> tuple[Any, ...]:
    """Return the arguments by which kernels know the attention of a stage's layer."""
    names = "qkv", "rope", "cache", "batch", "parts", "shares"
    sizes = np.int32(index), np.int32(len(stage.part.layers))
    extras = (stage.buffer("head_extras"),) if has_extras(stage.config) else ()
    return *(stage.buffer(name) for name in names), *sizes, *extras


def suffix(matrix: Matrix) -> str:
    """Return what the names of the kernels for a matrix's type end with."""
    return matrix.extent.kind.name.lower()
