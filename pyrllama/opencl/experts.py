"""Experts on a device: their matrices, the memory that they work in, and their launches.

Nothing of a step waits for the host: kernels write which experts a token takes, and those behind
them read it.  A token alone goes through its experts side by side, and no other one's weights are
read.  The tokens of a batch are sorted by expert, and each expert multiplies all of its own in
tiles, so that its weights are read once for up to a tile of tokens.  What its experts gave a token
is added in their order, the most probable first, wherever it stood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.models.llama import ROUTER
from pyrllama.opencl.launches import AS_FLOATS, AS_HALVES, BatchLaunch, activate, suffix, tile_of
from pyrllama.opencl.layout import (
    BLOCK,
    FLOAT,
    HALF,
    LANES,
    ROW_ALIGN,
    UNIT_BYTES,
    has_fragments,
    round_up,
)
from pyrllama.opencl.tuning import FEW_GROUP, FEW_ROWS, WIDE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyrllama.model_config import Experts, ModelConfig
    from pyrllama.opencl.launches import Tile
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.weights import Matrix

GATE_UP, DOWN = "expert_gate_up", "expert_down"
"""Groups of matrices of a layer: an expert's rows of gate and up stand together."""
GROUPS_OF_EXPERTS: dict[str, tuple[str, ...]] = {
    "router": (ROUTER,),
    GATE_UP: ("ffn_gate_exps", "ffn_up_exps"),
    DOWN: ("ffn_down_exps",),
}
"""What takes the place of gate, up and down."""


def feed_forward_bytes(config: ModelConfig, n_tokens: int) -> dict[str, int]:
    """Return the bytes of each buffer of a feed-forward network, for batches of so many tokens.

    With experts there is a row for each pair of a token and one of its experts.
    """
    used = config.experts.used if config.experts else 1
    rows = n_tokens * used
    hidden = FLOAT * round_up(rows, WIDE_TOKENS) * round_up(config.ffn_dim, ROW_ALIGN)
    n_bytes = {
        "gate_up": FLOAT * rows * round_up(2 * config.ffn_dim, BLOCK),
        "hidden_rows": hidden,
        "hidden": FLOAT * used * round_up(config.ffn_dim, BLOCK),
    }
    if config.experts is not None:
        count = config.experts.count
        n_bytes |= {
            "router_logits": FLOAT * n_tokens * round_up(count, BLOCK),
            "expert_rows": FLOAT * rows * round_up(config.dim, ROW_ALIGN),
            "expert_results": FLOAT * rows * round_up(config.dim, BLOCK),
            "expert_runs": 2 * FLOAT * count,
        }
        n_bytes |= dict.fromkeys(("chosen", "expert_weights", "places", "placed"), FLOAT * rows)
    return n_bytes


def unchosen_bytes(stage: Stage) -> int:
    """Return the bytes of a stage's experts that a token does not choose."""
    experts = stage.config.experts
    if experts is None:
        return 0
    groups = (f"{layer}.{group}" for layer in stage.part.layers for group in (GATE_UP, DOWN))
    n_bytes = sum(m.extent.n_bytes for group in groups for m in stage.matrices(group))
    return n_bytes // experts.count * (experts.count - experts.used)


class ExpertLaunches:
    """The launches of a layer's experts, the router's logits being there.

    ``few`` are the tokens of the largest batch that takes them, 0 where that is any number.
    """

    def __init__(self, stage: Stage, program: Program, experts: Experts, few: int = 0) -> None:
        self._stage, self._program, self._experts, self._few = stage, program, experts, few
        self._config, self._tuning = stage.config, stage.tuning

    def single(self, layer: int, norm: tuple[Any, ...]) -> Iterator[Launch]:
        """Yield the launches of one token, whose state is normed by each product for itself."""
        dim, hidden = (round_up(n, BLOCK) for n in (self._config.dim, self._config.ffn_dim))
        yield self._choose()
        (gate_up,) = self._stage.matrices(f"{layer}.{GATE_UP}")
        arguments = *norm, self._buffer("hidden"), np.int32(hidden)
        yield self._product("expert_swiglu_product", gate_up, 2, *arguments)
        (down,) = self._stage.matrices(f"{layer}.{DOWN}")
        results = self._buffer("hidden"), np.int32(hidden), self._buffer("expert_results")
        yield self._product("expert_product", down, 1, *results, np.int32(dim))
        yield self._add(is_sorted=False)

    def batch(self, layer: int, normalise: Callable[[int], BatchLaunch]) -> Iterator[BatchLaunch]:
        """Yield the launches of a batch, of which the router has read rows of floats.

        ``normalise`` gives the launch that makes these rows in another order.
        """
        yield BatchLaunch(self._choose())
        yield BatchLaunch(self._sort(), self._stage.batch.max_tokens)
        (down,) = self._stage.matrices(f"{layer}.{DOWN}")
        yield from self._activated(layer, normalise, self._tile(down).order)
        results = "expert_results", 0, round_up(self._config.dim, BLOCK)
        yield self._runs(down, "hidden_rows", *results)
        yield BatchLaunch(self._add(is_sorted=True))

    # --- one token ----------------------------------------------------------------------------

    def _product(self, name: str, matrix: Matrix, halves: int, *arguments: Any) -> Launch:
        """Share out the device's groups among the token's experts."""
        slots, tuning = self._experts.used, self._tuning
        results = self._rows_of_one(matrix) // halves
        most = max(1, tuning.groups // slots)
        groups = min(most, -(-results // (tuning.group // LANES)))
        name, chosen = f"{name}_{suffix(matrix)}", self._buffer("chosen")
        return self._launch(name, groups, *matrix.arguments, chosen, *arguments, slots=slots)

    # --- a batch ------------------------------------------------------------------------------

    def _activated(
        self, layer: int, normalise: Callable[[int], BatchLaunch], order: int
    ) -> Iterator[BatchLaunch]:
        """Multiply by gates and ups, and leave their SwiGLU in the order that is wanted."""
        ffn_dim, matrices = self._config.ffn_dim, self._stage.matrices(f"{layer}.{GATE_UP}")
        held, gathered, row = AS_FLOATS, None, 0
        for matrix in matrices:
            wanted = self._tile(matrix).order
            if held != wanted:
                held = wanted
                yield normalise(held)
            if gathered != held:
                gathered = held
                yield BatchLaunch(self._gather(held))
            if len(matrices) == 1 and self._takes_few(matrix) and order == AS_HALVES:
                hidden = "hidden_rows", 0, round_up(ffn_dim, ROW_ALIGN)
                yield self._few_runs(matrix, "expert_rows", *hidden, pair=ffn_dim)
                return
            columns = "gate_up", row, round_up(2 * ffn_dim, BLOCK)
            yield self._runs(matrix, "expert_rows", *columns)
            row += self._rows_of_one(matrix)
        yield BatchLaunch(activate(self._stage, self._program, order, self._experts.used))

    def _sort(self) -> Launch:
        names = "batch", "chosen", "expert_runs", "places", "placed"
        return self._launch("sort_by_expert", self._experts.count, *map(self._buffer, names))

    def _gather(self, order: int) -> Launch:
        """Bring each pair its token's row."""
        n_bytes = (HALF if order == AS_HALVES else FLOAT) * round_up(self._config.dim, ROW_ALIGN)
        buffers = (self._buffer(name) for name in ("rows", "placed", "expert_rows"))
        chunks = np.int32(n_bytes // UNIT_BYTES)
        return self._launch("gather_rows", self._experts.used, *buffers, chunks)

    def _runs(self, matrix: Matrix, source: str, out: str, first: int, stride: int) -> BatchLaunch:
        """Multiply each expert by its run of rows, to the columns of ``out`` from ``first`` on."""
        if self._takes_few(matrix):
            return self._few_runs(matrix, source, out, first, stride)
        tile = self._tile(matrix)
        launch = self._program.launch(
            f"expert_tiles_{suffix(matrix)}",
            -(-self._rows_of_one(matrix) // tile.rows),
            tile.group,
            *matrix.arguments,
            *(self._buffer(name) for name in (source, "batch", "expert_runs", out)),
            np.int32(first),
            np.int32(stride),
            slots=self._experts.count,
        )
        return BatchLaunch(launch, tile.tokens)

    def _few_runs(
        self, matrix: Matrix, source: str, out: str, first: int, stride: int, pair: int = 0
    ) -> BatchLaunch:
        """Multiply runs of few rows; with ``pair`` rows of gates and of ups, leave their SwiGLU."""
        n_rows = 2 * stride if pair else self._rows_of_one(matrix)
        launch = self._program.launch(
            f"expert_few_{self._few}_{suffix(matrix)}",
            -(-n_rows // FEW_ROWS),
            FEW_GROUP,
            *matrix.arguments,
            *(self._buffer(name) for name in (source, "expert_runs", out)),
            *(np.int32(n) for n in (first, stride, pair)),
            slots=self._experts.count,
        )
        return BatchLaunch(launch, self._few)

    def _takes_few(self, matrix: Matrix) -> bool:
        return bool(self._few) and has_fragments(matrix.extent.kind)

    def _tile(self, matrix: Matrix) -> Tile:
        return tile_of(self._tuning, matrix.extent.kind)

    def _rows_of_one(self, matrix: Matrix) -> int:
        return matrix.extent.rows // self._experts.count

    # --- both ---------------------------------------------------------------------------------

    def _choose(self) -> Launch:
        names = "router_logits", "chosen", "expert_weights"
        return self._launch("choose_experts", 1, *map(self._buffer, names))

    def _add(self, *, is_sorted: bool) -> Launch:
        names = "x", "expert_results", "expert_weights", "places"
        sizes = int(is_sorted), self._config.dim, round_up(self._config.dim, BLOCK)
        return self._launch(
            "add_experts",
            1,
            *map(self._buffer, names),
            *map(np.int32, sizes),
            slots=-(-self._config.dim // self._tuning.group),
        )

    def _buffer(self, name: str) -> Any:
        return self._stage.buffer(name)

    def _launch(self, name: str, groups: int, *arguments: Any, slots: int = 1) -> Launch:
        return self._program.launch(name, groups, self._tuning.group, *arguments, slots=slots)
