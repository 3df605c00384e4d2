"""The launches of a step, made once: one token's as matrix-vector products, a batch's as tiles."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import TensorType
from pyrllama.opencl.batch import N_OUTPUTS, N_TOKENS
from pyrllama.opencl.layout import BLOCK, round_up
from pyrllama.opencl.persistent import persistent_launch
from pyrllama.opencl.tuning import ATTENTION_GROUP, LANES, heads_at_once, local_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.core import Batch
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.weights import Matrix

TILE_GROUP, TILE_ROWS, TILE_TOKENS = 64, 32, 32
"""Of the portable tile product; see ``kernels/tile.cl``."""


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

    def enqueue(self, queue: Any, counts: dict[Rows, int]) -> None:
        """Enqueue the groups that so many rows need."""
        if counts[self.rows]:
            self.launch.enqueue(queue, -(-counts[self.rows] // self.rows_at_once))


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


class Steps:
    """All launches of a stage."""

    def __init__(self, stage: Stage, program: Program) -> None:
        self._stage, self._program = stage, program
        self._config, self._tuning = stage.config, stage.tuning
        self._batch = list(self._batch_launches())
        self._single: list[Launch] | None = None
        if stage.persists:
            self._single = [persistent_launch(stage, program, self._attention(0))]
            self._n_layer_launches = 1
        elif self._takes_single():
            self._single = list(self._single_launches())

    def enqueue(self, queue: Any, batch: Batch) -> None:
        """Enqueue a step; logits, if there are any, stand in their buffer when it ends."""
        counts = count_rows(batch)
        if counts[Rows.TOKENS] == 1 and self._single is not None:
            n_launches = len(self._single) if batch.n_outputs else self._n_layer_launches
            for launch in self._single[:n_launches]:
                launch.enqueue(queue)
            return
        for batch_launch in self._batch:
            batch_launch.enqueue(queue, counts)

    # --- one token ----------------------------------------------------------------------------

    def _takes_single(self) -> bool:
        """Whether gate and up are one matrix, whose results come out as pairs at once."""
        config = self._config
        memory = local_memory(self._stage.device, config, self._tuning)
        whole = round_up(config.dim, BLOCK) <= min(
            memory.segment_floats, memory.segment_blocks * BLOCK
        )
        layers = self._stage.part.layers
        return whole and all(len(self._matrices(f"{i}.gate_up")) == 1 for i in layers)

    def _single_launches(self) -> Iterator[Launch]:
        tuning, buffer = self._tuning, self._stage.buffer
        x, qkv, parts, shares = (buffer(name) for name in ("x", "qkv", "parts", "shares"))
        if self._stage.part.embeds:
            yield self._embed()
        n_launches = int(self._stage.part.embeds)
        items = self._config.n_heads // heads_at_once(self._config) * tuning.splits
        for index, layer in enumerate(self._stage.part.layers):
            row = 0
            for matrix in self._matrices(f"{layer}.qkv"):
                yield self._product(
                    "norm_product", matrix, *self._norm(2 * index), qkv, np.int32(row)
                )
                row += matrix.extent.rows
                n_launches += 1
            yield self._launch("attend_fresh", items, *self._attention(index))
            (matrix,) = self._matrices(f"{layer}.attn_output")
            yield self._product("attended_product", matrix, parts, shares, x)
            (matrix,) = self._matrices(f"{layer}.gate_up")
            norm = self._norm(2 * index + 1)
            yield self._product("swiglu_product", matrix, *norm, buffer("hidden"), halves=2)
            (matrix,) = self._matrices(f"{layer}.ffn_down")
            yield self._product("add_product", matrix, buffer("hidden"), x)
            n_launches += 4
        self._n_layer_launches = n_launches
        if self._stage.part.ends:
            (matrix,) = self._matrices("output")
            norm = self._norm(2 * len(self._stage.part.layers))
            yield self._product("norm_product", matrix, *norm, buffer("logits"), np.int32(0))

    def _product(self, name: str, matrix: Matrix, *arguments: Any, halves: int = 1) -> Launch:
        """Launch as many groups as there is work for, at most those that keep a device busy."""
        teams = self._tuning.group // LANES
        groups = min(self._tuning.groups, -(-matrix.extent.rows // halves // teams))
        return self._launch(f"{name}_{_suffix(matrix)}", groups, *matrix.arguments, *arguments)

    def _norm(self, index: int) -> tuple[Any, ...]:
        config, x, norm = self._config, self._stage.buffer("x"), self._stage.norm(index)
        return x, norm, np.int32(config.dim), np.float32(config.norm_eps)

    # --- a batch ------------------------------------------------------------------------------

    def _batch_launches(self) -> Iterator[BatchLaunch]:
        part = self._stage.part
        if part.embeds:
            yield BatchLaunch(self._embed())
        for index, layer in enumerate(part.layers):
            yield from self._normalised(2 * index, f"{layer}.qkv", "qkv")
            (matrix,) = self._matrices(f"{layer}.attn_output")
            yield from self._attended(index, matrix)
            yield self._tiles(matrix, "x", add=True)
            yield from self._normalised(2 * index + 1, f"{layer}.gate_up", "gate_up")
            (matrix,) = self._matrices(f"{layer}.ffn_down")
            yield self._activated(matrix)
            yield self._tiles(matrix, "x", add=True)
        if part.ends:
            yield from self._normalised(2 * len(part.layers), "output", "logits")

    def _normalised(self, norm: int, group: str, out: str) -> Iterator[BatchLaunch]:
        """Normalise the rows as each matrix of a group reads them, and multiply."""
        config, buffer = self._config, self._stage.buffer
        outputs = group == "output"
        as_half, row = None, 0
        for matrix in self._matrices(group):
            if as_half is not self._reads_halves(matrix):
                as_half = self._reads_halves(matrix)
                yield BatchLaunch(
                    self._launch(
                        "normalise_rows",
                        1,
                        buffer("x"),
                        self._stage.norm(norm),
                        buffer("batch"),
                        buffer("rows"),
                        np.int32(config.dim),
                        np.int32(round_up(config.dim, BLOCK)),
                        np.float32(config.norm_eps),
                        np.int32(as_half),
                        np.int32(outputs),
                    ),
                    rows=Rows.OUTPUTS if outputs else Rows.TOKENS,
                )
            yield self._tiles(matrix, out, row=row)
            row += matrix.extent.rows

    def _attended(self, index: int, matrix: Matrix) -> Iterator[BatchLaunch]:
        """Store keys and values, and attend to them, singly or by tiles, as a matrix reads it."""
        config, tuning, buffer = self._config, self._tuning, self._stage.buffer
        attention, as_half = self._attention(index), np.int32(self._reads_halves(matrix))
        out = buffer("rows"), as_half
        yield BatchLaunch(self._launch("store_rows", config.n_kv_heads, *attention))
        rows = Rows.SINGLE if tuning.attention_rows else Rows.TOKENS
        items = config.n_heads // heads_at_once(config) * tuning.splits
        yield BatchLaunch(self._launch("attend_rows", items, *attention), rows=rows)
        join = self._launch("join_rows", 1, buffer("parts"), buffer("shares"), *out)
        yield BatchLaunch(join, rows=rows)
        if tuning.attention_rows:  # last: for these rows, what was joined means nothing
            arguments = config.n_heads, ATTENTION_GROUP, *attention, *out
            tiles = self._program.launch("attend_tiles", *arguments)
            yield BatchLaunch(tiles, tuning.attention_rows, Rows.RUNS)

    def _activated(self, matrix: Matrix) -> BatchLaunch:
        config, buffer = self._config, self._stage.buffer
        sizes = config.ffn_dim, round_up(2 * config.ffn_dim, BLOCK), round_up(config.ffn_dim, BLOCK)
        words = (np.int32(n) for n in (*sizes, self._reads_halves(matrix)))
        rows = buffer("gate_up"), buffer("rows")
        return BatchLaunch(self._launch("swiglu_rows", 1, *rows, *words))

    def _tiles(self, matrix: Matrix, out: str, *, row: int = 0, add: bool = False) -> BatchLaunch:
        tuning, outputs = self._tuning, out == "logits"
        if self._reads_halves(matrix):
            tile = tuning.tensor_group, tuning.tensor_rows, tuning.tensor_tokens
        else:
            tile = TILE_GROUP, TILE_ROWS, TILE_TOKENS
        group, tile_rows, tile_tokens = tile
        buffer = self._stage.buffer
        launch = self._program.launch(
            f"tile_product_{_suffix(matrix)}",
            -(-matrix.extent.rows // tile_rows),
            group,
            *matrix.arguments,
            buffer("rows"),
            buffer("batch"),
            np.int32(N_OUTPUTS if outputs else N_TOKENS),
            buffer(out),
            np.int32(row),
            np.int32(self._stride(out)),
            np.int32(add),
        )
        return BatchLaunch(launch, tile_tokens, Rows.OUTPUTS if outputs else Rows.TOKENS)

    def _stride(self, rows: str) -> int:
        """Return the floats from a row of a buffer to the next."""
        config = self._config
        widths = {
            "x": config.dim,
            "qkv": config.q_dim + 2 * config.kv_dim,
            "gate_up": 2 * config.ffn_dim,
        }
        return round_up(widths[rows], BLOCK) if rows in widths else config.vocab_size

    # --- both ---------------------------------------------------------------------------------

    def _embed(self) -> Launch:
        (matrix,) = self._matrices("embedding")
        units, scales, _, n_units = matrix.arguments
        buffer, stride = self._stage.buffer, np.int32(round_up(self._config.dim, BLOCK))
        arguments = units, scales, n_units, buffer("batch"), buffer("x"), stride
        return self._launch(f"embed_{_suffix(matrix)}", 1, *arguments)

    def _attention(self, index: int) -> tuple[Any, ...]:
        names = "qkv", "rope", "cache", "batch", "parts", "shares"
        sizes = np.int32(index), np.int32(len(self._stage.part.layers))
        return *(self._stage.buffer(name) for name in names), *sizes

    def _launch(self, name: str, groups: int, *arguments: Any) -> Launch:
        return self._program.launch(name, groups, self._tuning.group, *arguments)

    def _matrices(self, group: str) -> list[Matrix]:
        return self._stage.matrices(group)

    def _reads_halves(self, matrix: Matrix) -> bool:
        """Whether a matrix's tiles are multiplied on Tensor Cores, which read float16."""
        return self._tuning.tensor_cores and matrix.extent.kind is not TensorType.F32


def _suffix(matrix: Matrix) -> str:
    return matrix.extent.kind.name.lower()
