"""The launches of a step, made once: one token's as matrix-vector products, and a batch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.opencl.batch_steps import MANY, BatchSteps, count_rows
from pyrllama.opencl.choice import choice_launches
from pyrllama.opencl.experts import GATE_UP, ExpertLaunches
from pyrllama.opencl.launches import Rows, attention_arguments, embed, suffix
from pyrllama.opencl.layout import LANES
from pyrllama.opencl.persistent import gives_pairs, persistent_launch
from pyrllama.opencl.tuning import FEW_COUNTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.core import Batch
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.weights import Matrix


class Steps:
    """All launches of a stage."""

    def __init__(self, stage: Stage, program: Program) -> None:
        self._stage, self._program = stage, program
        self._config, self._tuning = stage.config, stage.tuning
        counts = [few for few in FEW_COUNTS if few <= stage.tuning.few_tokens]
        self._batches = {few: BatchSteps(stage, program, few) for few in (*counts, MANY)}
        self._choice = list(choice_launches(stage, program)) if stage.part.ends else []
        self._single: list[Launch] | None = None
        if stage.persists:
            self._single = [persistent_launch(stage, program, attention_arguments(stage, 0))]
            self._n_layer_launches = 1
        elif self._takes_single():
            layers = list(self._single_layers())
            self._single, self._n_layer_launches = [*layers, *self._single_end()], len(layers)

    def enqueue(self, queue: Any, batch: Batch, *, top: int) -> Any:
        """Enqueue a step; logits, if there are any, stand in their buffer when it ends.

        With ``top``, which the words of the batch give too, so many of the greatest do as well.
        Returns the event of its end.
        """
        event = None
        for launch, times in self.launches(batch, top=top):
            event = launch.enqueue(queue, times)
        return event

    def launches(self, batch: Batch, *, top: int) -> Iterator[tuple[Launch, int]]:
        """Yield a step's launches in their order, and how many times its groups each takes."""
        counts = count_rows(batch)
        yield from self._computing(counts)
        if top and not (batch.n_tokens == 1 and self._stage.persists):
            yield from (launch.sized(counts) for launch in self._choice)

    def _computing(self, counts: dict[Rows, int]) -> Iterator[tuple[Launch, int]]:
        if counts[Rows.TOKENS] == 1 and self._single is not None:
            n_launches = len(self._single) if counts[Rows.OUTPUTS] else self._n_layer_launches
            yield from ((launch, 1) for launch in self._single[:n_launches])
            return
        layers = self._batches[self._few(counts[Rows.TOKENS])].layers
        end = self._batches[self._few(counts[Rows.OUTPUTS])].end
        for batch_launch in (*layers, *end):
            launch, times = batch_launch.sized(counts)
            if times:
                yield launch, times

    def _few(self, n_rows: int) -> int:
        """Return the products that take so many rows: those of few, if there are such."""
        return next((few for few in self._batches if n_rows <= few), MANY)

    # --- one token ----------------------------------------------------------------------------

    def _takes_single(self) -> bool:
        """Whether gates and ups come out as pairs in each layer."""
        layers, memory = self._stage.part.layers, self._stage.local_memory
        group = GATE_UP if self._config.experts else "gate_up"
        return all(gives_pairs(self._matrices(f"{i}.{group}"), memory) for i in layers)

    def _single_layers(self) -> Iterator[Launch]:
        tuning, buffer = self._tuning, self._stage.buffer
        x, qkv, parts, shares = (buffer(name) for name in ("x", "qkv", "parts", "shares"))
        if self._stage.part.embeds:
            yield embed(self._stage, self._program)
        items = self._config.n_heads // tuning.heads * tuning.splits
        for index, layer in enumerate(self._stage.part.layers):
            row = 0
            for matrix in self._matrices(f"{layer}.qkv"):
                yield self._product(
                    "norm_product", matrix, *self._norm(2 * index), qkv, np.int32(row)
                )
                row += matrix.extent.rows
            yield self._launch("attend_fresh", items, *attention_arguments(self._stage, index))
            (matrix,) = self._matrices(f"{layer}.attn_output")
            yield self._product("attended_product", matrix, parts, shares, x)
            yield from self._feed_forward(layer, self._norm(2 * index + 1))

    def _feed_forward(self, layer: int, norm: tuple[Any, ...]) -> Iterator[Launch]:
        buffer = self._stage.buffer
        if self._config.experts is not None:
            (router,) = self._matrices(f"{layer}.router")
            logits = buffer("router_logits"), np.int32(0)
            yield self._product("norm_product", router, *norm, *logits)
            experts = ExpertLaunches(self._stage, self._program, self._config.experts)
            yield from experts.single(layer, norm)
            return
        (matrix,) = self._matrices(f"{layer}.gate_up")
        yield self._product("swiglu_product", matrix, *norm, buffer("hidden"), halves=2)
        (matrix,) = self._matrices(f"{layer}.ffn_down")
        yield self._product("add_product", matrix, buffer("hidden"), buffer("x"))

    def _single_end(self) -> Iterator[Launch]:
        if self._stage.part.ends:
            (matrix,) = self._matrices("output")
            norm = self._norm(2 * len(self._stage.part.layers))
            logits = self._stage.buffer("logits"), np.int32(0)
            yield self._product("norm_product", matrix, *norm, *logits)

    def _product(self, name: str, matrix: Matrix, *arguments: Any, halves: int = 1) -> Launch:
        """Launch as many groups as there is work for, at most those that keep a device busy."""
        teams = self._tuning.group // LANES
        groups = min(self._tuning.groups, -(-matrix.extent.rows // halves // teams))
        return self._launch(f"{name}_{suffix(matrix)}", groups, *matrix.arguments, *arguments)

    def _norm(self, index: int) -> tuple[Any, ...]:
        config, x, norm = self._config, self._stage.buffer("x"), self._stage.norm(index)
        return x, norm, np.int32(config.dim), np.float32(config.norm_eps)

    def _launch(self, name: str, groups: int, *arguments: Any) -> Launch:
        return self._program.launch(name, groups, self._tuning.group, *arguments)

    def _matrices(self, group: str) -> list[Matrix]:
        return self._stage.matrices(group)
