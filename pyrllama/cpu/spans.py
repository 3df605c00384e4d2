"""How the attention of a batch is cut into spans, the pieces that threads take one by one.

A tile is a run of tokens of one sequence.  Each takes one span, or, where there are more
threads than that keeps busy, several that share its parts of 256 positions.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.cpu.records import PART_TOKENS, SCORES_STEP, SPAN, SPARE_QUERY_ROWS, Records

if TYPE_CHECKING:
    from pyrllama.core import Batch
    from pyrllama.model_config import ModelConfig

QUERY_ROWS = 48
"""Query rows of a tile of several tokens: what converts a block of the cache once."""
SPANS_A_THREAD = 4
"""Pieces a thread should find, so that all end at about the same time."""
NO_WINDOW = 1 << 40
"""More positions than any sequence has."""


class Tile(NamedTuple):
    """Consecutive tokens of one sequence: the first one's row in the batch and its position."""

    token: int
    position: int
    n_tokens: int

    @property
    def n_parts(self) -> int:
        """Parts of the positions up to its last token's."""
        return -(-(self.position + self.n_tokens) // PART_TOKENS)

    def first_part(self, window: int) -> int:
        """Return the first part that its first token sees through a window."""
        return max(self.position - window + 1, 0) // PART_TOKENS


class Span(NamedTuple):
    """A row of SPAN, which says what its fields are."""

    token: int
    n_tokens: int
    first_part: int
    last_part: int
    n_parts: int
    partials: int
    n_spans: int
    finished: int
    stores: bool


def tiles_of(batch: Batch, group: int) -> list[Tile]:
    """Cut the chunks of a batch into tiles, for ``group`` query heads a KV head."""
    size, token, tiles = max(QUERY_ROWS // group, 1), 0, []
    for chunk in batch.chunks:
        n = len(chunk.tokens)
        tiles += [Tile(token + i, chunk.start + i, min(size, n - i)) for i in range(0, n, size)]
        token += n
    return tiles


class Spans:
    """The SPAN records of a batch, and the memory in which spans of one tile meet."""

    def __init__(
        self, config: ModelConfig, head_stride: int, max_tokens: int, max_seq_len: int, threads: int
    ) -> None:
        self._group = config.n_heads // config.n_kv_heads
        self._n_kv_heads, self._wanted = config.n_kv_heads, SPANS_A_THREAD * threads
        self.window = min(config.sliding_window or NO_WINDOW, NO_WINDOW)
        self.row_bytes = 4 * head_stride + 64
        max_parts = -(-max_seq_len // PART_TOKENS)
        self._records = Records(SPAN, max_tokens + self._wanted)
        self._finished = np.zeros((self._wanted, config.n_kv_heads), np.int64)
        shared_heads = min(self._wanted, max_tokens * config.n_kv_heads) if max_parts > 1 else 0
        # Given real pages only where spans do share a tile.
        self._partials = np.zeros(shared_heads * self._group * max_parts * self.row_bytes, np.uint8)

    @property
    def query_rows(self) -> int:
        """Rows for which a thread needs scratch: a tile's, and those that fill up registers."""
        return max(QUERY_ROWS, self._group) + SPARE_QUERY_ROWS

    @property
    def work_bytes(self) -> int:
        """Bytes of scratch that a thread needs: queries, scores, results twice, and a block."""
        stride = self.row_bytes - 64
        block = BLOCK_TOKENS * stride + 128
        return self.query_rows * (stride + SCORES_STEP + 2 * self.row_bytes) + block

    @property
    def address(self) -> int:
        """Where the records begin."""
        return self._records.address

    def plan(self, batch: Batch) -> int:
        """Write the spans of a batch, the longest work first, and return how many they are."""
        tiles = tiles_of(batch, self._group)
        pieces, stores = self._pieces(tiles), not attends_to_itself(batch)
        place, finished = self._partials.ctypes.data, self._finished.ctypes.data
        spans: list[Span] = []
        for tile in tiles:
            first, n = tile.first_part(self.window), tile.n_parts
            if pieces == 1 or n - first == 1:
                spans.append(Span(tile.token, tile.n_tokens, first, n, n, 0, 1, 0, stores))
            else:
                spans += _shared_spans(tile, first, pieces, place, finished, stores=stores)
                place += self._partial_bytes(tile)
                finished += self._finished.strides[0]
        spans.sort(key=lambda span: span.n_tokens * (span.first_part - span.last_part))
        self._records.words[: len(spans)] = spans
        return len(spans)

    def _pieces(self, tiles: list[Tile]) -> int:
        """Return into how many spans long tiles are cut: one, unless threads would go idle."""
        n_items = len(tiles) * self._n_kv_heads
        needed = sum(self._partial_bytes(tile) for tile in tiles if tile.n_parts > 1)
        if n_items >= self._wanted or needed > self._partials.nbytes:
            return 1
        return -(-self._wanted // n_items)

    def _partial_bytes(self, tile: Tile) -> int:
        rows = tile.n_tokens * self._group
        return self._n_kv_heads * tile.n_parts * rows * self.row_bytes


def _shared_spans(
    tile: Tile, first_part: int, pieces: int, partials: int, finished: int, *, stores: bool
) -> list[Span]:
    """Cut the parts of a tile from ``first_part`` on into spans of about the same length."""
    n_parts, n_seen = tile.n_parts, tile.n_parts - first_part
    n_spans = min(pieces, n_seen)
    edges = [first_part + n_seen * i // n_spans for i in range(n_spans + 1)]
    return [
        Span(
            tile.token, tile.n_tokens, first, last, n_parts, partials, n_spans, finished,
            stores and last == n_parts,
        )
        for first, last in itertools.pairwise(edges)
    ]  # fmt: skip


def attends_to_itself(batch: Batch) -> bool:
    """Whether a token attends to others of the same batch, whose keys must be there before."""
    return any(len(chunk.tokens) > 1 for chunk in batch.chunks)
