"""The launches of a batch: tiles of a matrix by tiles of rows, wide ones or few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pyrllama.opencl.batch import N_OUTPUTS, N_TOKENS
from pyrllama.opencl.experts import ExpertLaunches
from pyrllama.opencl.heads import has_extras
from pyrllama.opencl.launches import (
    AS_FLOATS,
    BatchLaunch,
    Rows,
    activate,
    attention_arguments,
    embed,
    suffix,
    tile_of,
)
from pyrllama.opencl.layout import BLOCK, LANES, LAYOUTS, ROW_ALIGN, has_fragments, round_up
from pyrllama.opencl.tuning import (
    ATTENTION_GROUP,
    FEW_GROUP,
    FEW_ROWS,
    TENSOR_ATTENTION_ROWS,
    WIDE_HEIGHTS,
    WIDE_TOKENS,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.core import Batch
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.weights import Matrix

TALL_TILE_TIME = 1.25
"""Of a wide tile of 192 rows, one of 128 rows taking 1, as measured on an H200."""
MANY = 0
"""Instead of the number of rows that a product of few takes."""


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
            yield from self._feed_forward(index, layer)

    def _feed_forward(self, index: int, layer: int) -> Iterator[AnyLaunch]:
        if self._config.experts is not None:
            yield from self._normalised(2 * index + 1, f"{layer}.router", "router_logits")
            experts = ExpertLaunches(self._stage, self._program, self._config.experts, self._few)
            yield from experts.batch(layer, partial(self._norm_rows, 2 * index + 1, outputs=False))
            return
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
        items = config.n_heads // tuning.heads * tuning.splits
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
        # Products of few rows leave float16, which matrices in F32 do not read.
        readable = not self._few or order != AS_FLOATS
        if len(matrices) == 1 and self._pairs(matrices[0]) and readable:
            yield self._norm_rows(2 * index + 1, self._order(matrices[0]), outputs=False)
            target = N_TOKENS, buffer("hidden_rows"), 0, width, 0, config.ffn_dim
            yield self._tensor_product(matrices[0], "rows", target, 2 * width, order)
            return
        yield from self._normalised(2 * index + 1, group, "gate_up")
        yield BatchLaunch(activate(self._stage, self._program, self._order(down)))

    def _product(
        self, matrix: Matrix, source: str, out: str, *, row: int = 0, add: bool = False
    ) -> AnyLaunch:
        """Multiply the rows of a buffer, each tile of the matrix by each tile of rows."""
        outputs, buffer = out == "logits", self._stage.buffer
        count, rows = (N_OUTPUTS, Rows.OUTPUTS) if outputs else (N_TOKENS, Rows.TOKENS)
        target = count, buffer(out), row, self._stride(out), add
        if self._pairs(matrix):
            return self._tensor_product(matrix, source, (*target, 0), matrix.extent.rows)
        tile = tile_of(self._tuning, matrix.extent.kind)
        launch = self._program.launch(
            f"tile_product_{suffix(matrix)}",
            -(-matrix.extent.rows // tile.rows),
            tile.group,
            *matrix.arguments,
            buffer(source),
            buffer("batch"),
            *_words(target),
        )
        return BatchLaunch(launch, tile.tokens, rows)

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
            "router_logits": config.experts.count if config.experts else 0,
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
        wide = self._tuning.warpgroups and not self._few and has_fragments(kind)
        return LAYOUTS[kind].unit_cols if wide else tile_of(self._tuning, kind).order


def _words(arguments: tuple[Any, ...]) -> Iterator[Any]:
    """Yield arguments of a kernel, the whole numbers as its words."""
    return (np.int32(value) if isinstance(value, int) else value for value in arguments)
