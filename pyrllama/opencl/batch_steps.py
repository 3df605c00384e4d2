"""The launches of a batch: tiles of a matrix by tiles of rows, wide ones or few rows at a time."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pyrllama.core import TensorType
from pyrllama.opencl.batch import N_OUTPUTS, N_TOKENS
from pyrllama.opencl.heads import has_extras
from pyrllama.opencl.launches import attention_arguments, embed, suffix
from pyrllama.opencl.layout import BLOCK, LAYOUTS, ROW_ALIGN, round_up
from pyrllama.opencl.tuning import (
    ATTENTION_GROUP,
    FEW_GROUP,
    FEW_ROWS,
    LANES,
    TENSOR_ATTENTION_ROWS,
    WIDE_HEIGHTS,
    WIDE_TOKENS,
    heads_at_once,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.core import Batch
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.weights import Matrix

TILE_GROUP, TILE_ROWS, TILE_TOKENS = 64, 32, 32
"""Of the portable tile product; see ``kernels/tile.cl``."""
AS_FLOATS, AS_HALVES = 0, 1
"""Orders of the activations that a product reads; others are for wide tiles, see ``rows.cl``."""
TALL_TILE_TIME = 1.25
"""Of a wide tile of 192 rows, one of 128 rows taking 1, as measured on an H200."""
MANY = 0
"""Instead of the number of rows that a product of few takes."""


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


@dataclass(frozen=True, slots=True)
class WideLaunch:
    """A product in tiles of 192 or of 128 rows of the matrix, whichever keeps the device busier."""

    tall: Launch
    low: Launch
    compute_units: int
    rows: Rows

    def sized(self, counts: dict[Rows, int]) -> tuple[Launch, int]:
        """Return the launch that ends first, and how many times its groups so many rows need."""
        times = -(-counts[self.rows] // WIDE_TOKENS)
        tall, low = (-(-times * n.groups // self.compute_units) for n in (self.tall, self.low))
        return (self.tall if tall * TALL_TILE_TIME <= low else self.low), times


AnyLaunch: TypeAlias = BatchLaunch | WideLaunch


def count_rows(batch: Batch) -> dict[Rows, int]:
    """Return how many rows launches of each kind run over."""
    n_tokens = batch.n_tokens
    single = any(len(chunk.tokens) == 1 for chunk in batch.chunks)
    runs = any(len(chunk.tokens) > 1 for chunk in batch.chunks)
    return {
        Rows.TOKENS: n_tokens,
        Rows.OUTPUTS: batch.n_outputs,
        Rows.SINGLE: n_tokens * single,
        Rows.RUNS: n_tokens * runs,
    }


class BatchSteps:
    """The launches of batches of any number of rows, or of at most ``few``."""

    def __init__(self, stage: Stage, program: Program, few: int = MANY) -> None:
        self._stage, self._program, self._few = stage, program, few
        self._config, self._tuning = stage.config, stage.tuning
        self.layers = list(self._layer_launches())
        self.end = list(self._end_launches())

    def _layer_launches(self) -> Iterator[AnyLaunch]:
        part = self._stage.part
        if part.embeds:
            yield BatchLaunch(embed(self._stage, self._program))
        for index, layer in enumerate(part.layers):
            yield from self._normalised(2 * index, f"{layer}.qkv", "qkv")
            (matrix,) = self._stage.matrices(f"{layer}.attn_output")
            yield from self._attended(index, matrix)
            yield self._product(matrix, "rows", "x", add=True)
            (matrix,) = self._stage.matrices(f"{layer}.ffn_down")
            yield from self._activated(index, f"{layer}.gate_up", matrix)
            yield self._product(matrix, "hidden_rows", "x", add=True)

    def _end_launches(self) -> Iterator[AnyLaunch]:
        part = self._stage.part
        if part.ends:
            yield from self._normalised(2 * len(part.layers), "output", "logits")

    def _normalised(self, norm: int, group: str, out: str) -> Iterator[AnyLaunch]:
        """Normalise the rows as each matrix of a group reads them, and multiply."""
        order, row = None, 0
        for matrix in self._stage.matrices(group):
            if order != self._order(matrix):
                order = self._order(matrix)
                yield self._norm_rows(norm, order, outputs=group == "output")
            yield self._product(matrix, "rows", out, row=row)
            row += matrix.extent.rows

    def _norm_rows(self, norm: int, order: int, *, outputs: bool) -> BatchLaunch:
        config, buffer = self._config, self._stage.buffer
        strides = round_up(config.dim, BLOCK), round_up(config.dim, ROW_ALIGN)
        launch = self._launch(
            "normalise_rows",
            1,
            buffer("x"),
            self._stage.norm(norm),
            buffer("batch"),
            buffer("rows"),
            *(np.int32(n) for n in (config.dim, *strides)),
            np.float32(config.norm_eps),
            np.int32(order),
            np.int32(outputs),
        )
        return BatchLaunch(launch, rows=Rows.OUTPUTS if outputs else Rows.TOKENS)

    def _attended(self, index: int, matrix: Matrix) -> Iterator[AnyLaunch]:
        """Store keys and values, and attend to them, singly or by tiles, as a matrix reads it."""
        config, tuning, buffer = self._config, self._tuning, self._stage.buffer
        attention = attention_arguments(self._stage, index)
        out = buffer("rows"), np.int32(self._order(matrix))
        tile_rows, kernel = tuning.attention_rows, "attend_tiles"
        if self._stage.attends_on_tensor_cores:
            tile_rows, kernel = TENSOR_ATTENTION_ROWS, "attend_tensor_tiles"
        if has_extras(config):
            yield BatchLaunch(self._launch("finish_heads", 1, *attention, buffer("qkv")))
        yield BatchLaunch(self._launch("store_batch", 1, *attention))
        rows = Rows.SINGLE if tile_rows else Rows.TOKENS
        items = config.n_heads // heads_at_once(config) * tuning.splits
        yield BatchLaunch(self._launch("attend_rows", items, *attention), rows=rows)
        join = self._launch("join_rows", 1, buffer("parts"), buffer("shares"), *out)
        yield BatchLaunch(join, rows=rows)
        if tile_rows:  # last: for these rows, what was joined means nothing
            arguments = config.n_heads, ATTENTION_GROUP, *attention, *out
            yield BatchLaunch(self._program.launch(kernel, *arguments), tile_rows, Rows.RUNS)

    def _activated(self, index: int, group: str, down: Matrix) -> Iterator[AnyLaunch]:
        """Multiply by gates and ups, and leave their SwiGLU as the matrix after them reads it."""
        config, buffer, matrices = self._config, self._stage.buffer, self._stage.matrices(group)
        width, order = round_up(config.ffn_dim, ROW_ALIGN), np.int32(self._order(down))
        if len(matrices) == 1 and self._pairs(matrices[0]):
            yield self._norm_rows(2 * index + 1, self._order(matrices[0]), outputs=False)
            target = N_TOKENS, buffer("hidden_rows"), 0, width, 0, config.ffn_dim
            yield self._tensor_product(matrices[0], "rows", target, 2 * width, order)
            return
        yield from self._normalised(2 * index + 1, group, "gate_up")
        sizes = config.ffn_dim, round_up(2 * config.ffn_dim, BLOCK), width, order
        rows = buffer("gate_up"), buffer("hidden_rows")
        yield BatchLaunch(self._launch("swiglu_rows", 1, *rows, *(np.int32(n) for n in sizes)))

    def _product(
        self, matrix: Matrix, source: str, out: str, *, row: int = 0, add: bool = False
    ) -> AnyLaunch:
        """Multiply the rows of a buffer, each tile of the matrix by each tile of rows."""
        tuning, outputs, buffer = self._tuning, out == "logits", self._stage.buffer
        count, rows = (N_OUTPUTS, Rows.OUTPUTS) if outputs else (N_TOKENS, Rows.TOKENS)
        target = count, buffer(out), row, self._stride(out), add
        if self._pairs(matrix):
            return self._tensor_product(matrix, source, (*target, 0), matrix.extent.rows)
        if self._order(matrix) == AS_HALVES:
            tile = tuning.tensor_group, tuning.tensor_rows, tuning.tensor_tokens
        else:
            tile = TILE_GROUP, TILE_ROWS, TILE_TOKENS
        group, tile_rows, tile_tokens = tile
        launch = self._program.launch(
            f"tile_product_{suffix(matrix)}",
            -(-matrix.extent.rows // tile_rows),
            group,
            *matrix.arguments,
            buffer(source),
            buffer("batch"),
            *_words(target),
        )
        return BatchLaunch(launch, tile_tokens, rows)

    def _tensor_product(
        self,
        matrix: Matrix,
        source: str,
        target: tuple[Any, ...],
        n_rows: int,
        order: np.int32 | int = AS_FLOATS,
    ) -> AnyLaunch:
        """Multiply by a kernel that takes gates and ups, too: few rows, or wide tiles of many."""
        rows = Rows.OUTPUTS if target[0] == N_OUTPUTS else Rows.TOKENS
        buffer = self._stage.buffer
        arguments = *matrix.arguments, buffer(source), buffer("batch"), *_words(target)
        if self._few:
            name, groups = f"few_product_{self._few}_{suffix(matrix)}", -(-n_rows // FEW_ROWS)
            launch = self._program.launch(name, groups, FEW_GROUP, *arguments)
            return BatchLaunch(launch, self._few, rows)
        tall, low = (
            self._program.launch(
                f"wide_product_{height}_{suffix(matrix)}",
                -(-n_rows // height),
                (height // 16 + 1) * LANES,  # a warp for 16 rows, and one that copies
                *arguments,
                np.int32(order),
            )
            for height in WIDE_HEIGHTS
        )
        return WideLaunch(tall, low, self._stage.device.compute_units, rows)

    def _stride(self, rows: str) -> int:
        """Return the floats from a row of a buffer to the next."""
        config = self._config
        widths = {
            "x": config.dim,
            "qkv": config.q_dim + 2 * config.kv_dim,
            "gate_up": 2 * config.ffn_dim,
        }
        return round_up(widths[rows], BLOCK) if rows in widths else config.vocab_size

    def _launch(self, name: str, groups: int, *arguments: Any) -> Launch:
        return self._program.launch(name, groups, self._tuning.group, *arguments)

    def _pairs(self, matrix: Matrix) -> bool:
        """Whether a matrix is multiplied by a kernel that takes gates and ups, too."""
        wanted = self._few or self._tuning.warpgroups
        return bool(wanted) and has_fragments(matrix.extent.kind)

    def _order(self, matrix: Matrix) -> int:
        """Return how a matrix's product reads activations; see ``kernels/rows.cl``."""
        kind = matrix.extent.kind
        if not self._tuning.tensor_cores or kind is TensorType.F32:
            return AS_FLOATS
        wide = self._tuning.warpgroups and not self._few and has_fragments(kind)
        return LAYOUTS[kind].unit_cols if wide else AS_HALVES


def has_fragments(kind: TensorType) -> bool:
    """Whether units of a type are opened straight into what Tensor Cores read.

    Those that are cut into planes go through local memory; see ``kernels/fragments.cl``.
    """
    return kind is not TensorType.F32 and LAYOUTS[kind].planes is None


def _words(arguments: tuple[Any, ...]) -> Iterator[Any]:
    """Yield arguments of a kernel, the whole numbers as its words."""
    return (np.int32(value) if isinstance(value, int) else value for value in arguments)
