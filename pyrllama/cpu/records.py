"""The structures in memory that Python fills and kernels read: fields of eight bytes each.

A record is a row of 64-bit words.  Python sets words by field name; a kernel reads them as
attributes of a view (``kernel.view``).  The definitions stand here, apart from both, so that
they are written once and need no Numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True, slots=True)
class Record:
    """The layout of a structure: the names of its int64 and of its float fields, in order."""

    name: str
    integers: tuple[str, ...]
    floats: tuple[str, ...] = ()

    @property
    def n_words(self) -> int:
        """Words of one record."""
        return len(self.integers) + len(self.floats)

    @property
    def n_bytes(self) -> int:
        """Bytes of one record."""
        return 8 * self.n_words

    def offset(self, field: str) -> int:
        """Return where a field stands, in bytes."""
        return 8 * _places(self)[field]


@cache
def _places(record: Record) -> dict[str, int]:
    return {field: word for word, field in enumerate((*record.integers, *record.floats))}


class Records:
    """An array of records of one layout, in memory that does not move."""

    def __init__(self, record: Record, count: int = 1) -> None:
        self.record = record
        self.words = np.zeros((count, record.n_words), np.int64)

    @property
    def address(self) -> int:
        """Where the first record begins."""
        return self.words.ctypes.data

    def address_of(self, index: int) -> int:
        """Where one record begins."""
        return self.address + index * self.record.n_bytes

    def set(self, index: int = 0, **values: float) -> None:
        """Set fields of one record; a float field takes a float32's bits."""
        for field, value in values.items():
            word = self.record.offset(field) // 8
            if field in self.record.floats:
                self.words[index, word] = int(np.float32(value).view(np.uint32))
            else:
                self.words[index, word] = int(value)


MATRIX = Record(
    "Matrix",
    (
        "data",  # address of the packed weights
        "n_groups",  # groups of 16 rows, the last one padded with zeros
        "n_rows",  # rows that count
        "n_cols",  # columns, padded to what the format needs
        "bytes_a_group",
        "matvec",  # address of the kernel that multiplies it with one row
        "matmul",  # with several rows
        "tile_matmul",  # with many rows, on matrix tiles; 0 where the CPU has none
        "row",  # address of the kernel that unpacks one row
        "form",  # of the activations that ``matvec`` and ``matmul`` read
    ),
)
"""A weight matrix in the layout of ``layout.py``."""

FLOATS, BYTES, TILES, WIDE_BYTES = 1, 2, 4, 8
"""Forms of activations, as bits: float32, quantised to int8 by blocks of 32 columns, bfloat16 in
matrix tiles, quantised to int8 by super-blocks of 256 columns."""
ROWS_AT_ONCE = 6
"""Rows of activations that a product holds in registers: twelve 256-bit sums, of sixteen."""
BLOCK_WORDS = 15
"""Words of a block of one of those rows: eight of four columns, a scale, three pairs of sums, and
three sums times the scale."""
SUMS = 3
"""Sums of a block of activations: of all 32 columns, of the first 16 and of the last 16."""
START_OFFSET = 128
"""The offset that sums among six rows take off, where CPUs sum products in 32 bits."""
TILE_ROWS = 32
"""Rows of activations that a product on matrix tiles takes at a time."""
TILE_BLOCKS = 16
"""Blocks of columns of two groups that fit into a first cache as tiles: 32 KB."""
TILED_ROWS = 24
"""Rows from which a product goes through matrix tiles, where there are any."""
PANEL_BLOCKS = 16
"""Blocks of columns of a panel of bytes, which stays in a core's first cache: 8 to 13 KB."""
PANEL_BYTES = 28 << 10
"""Room for a panel of any type, and behind it for sums that assembly leaves in memory."""
FEW_SIXES = 4
"""Sixes of rows that are few: all of them meet a whole group before the next one."""
GROUPS_AT_ONCE, SIXES_AT_ONCE = 8, 32
"""How many groups, and sixes of rows, meet part by part of their columns.

So many columns of the rows stay in a core's second cache beside the sums so far, whatever the
whole rows take.
"""
ACTIVATIONS = Record(
    "Activations",
    (
        "x",  # (rows, stride) float32
        "x_stride",  # bytes from a row to the next
        "q",  # (rows, n_cols) int8, blocks of 32
        "q_stride",
        "scales",  # (rows, n_cols / 32) float32
        "sums",  # (rows, n_cols / 32, 3) pairs of int16: of all 32, of the first and of the last
        # 16 columns; the first of a pair of two columns of every four, the second of the others
        "scaled_sums",  # both together as float32, times the scale
        "block_stride",  # bytes from a row of scales to the next, a third of that of sums
        "n_cols",  # padded with zeros to whole blocks of 32
        "floats",  # the same rows six by six, as ``matmul`` reads them
        "floats_stride",  # bytes from six rows to the next six
        "bytes",
        "bytes_stride",
        "tiles",  # the same rows as bfloat16 in matrix tiles, see ``tiles.py``
        "wide",  # ACTIVATIONS: the same rows quantised with one scale for 256 columns
    ),
)
"""Rows of activations as float32 and in the forms that products read; see ``activations.py``."""

LAYER = Record(
    "Layer",
    (
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
        "q_bias",  # of rows of the matrices; 0 where there is none
        "k_bias",
        "v_bias",
        "q_norm",  # of a head; 0 where heads are not normalised
        "k_norm",
        "router",  # MATRIX; of experts, the three of the FFN are the first of so many records
        "attn_squares",  # float64 sums of squares of what the matrices multiply, (columns,);
        "attended_squares",  # 0 while nobody counts them
        "ffn_squares",  # of experts, what the router multiplies
        "expert_squares",  # (experts, columns): of the tokens that chose each
        "hidden_squares",  # of experts (experts, columns)
        "expert_tokens",  # (experts,) int64: how many tokens chose each
    ),
)
"""The weights of a layer: addresses of float32 vectors (norms) and of MATRIX records."""

STEP = Record(
    "Step",
    (
        # the model
        "n_layers",
        "layers",  # LAYER records
        "embedding",  # MATRIX
        "output_norm",
        "output",  # MATRIX
        "output_squares",  # as those of a layer
        "dim",
        "ffn_dim",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "head_stride",  # head_dim padded as the type of the cache needs
        "rope",  # (positions, 2, head_stride) float32: cosines, then signed sines
        "window",  # positions that a token attends to, its own included
        "mixture",  # MIXTURE; 0 where feed-forward networks have no experts
        # the cache
        "cache",  # blocks of keys and values
        "store",  # kernels of kv_cache.py and attention.py, by address
        "attend",
        "block_bytes",  # bytes of a block, all layers
        "layer_bytes",  # bytes of a layer in a block: keys, then values
        # the batch
        "n_tokens",
        "n_outputs",
        "tokens",  # (n_tokens,) int64 ids
        "positions",  # (n_tokens,) int64
        "tables",  # (n_tokens,) int64: addresses of the sequences' block tables (int64)
        "outputs",  # (n_outputs,) int64: which tokens' logits are wanted
        "spans",  # SPAN records
        "n_spans",
        "stored_first",  # 1 if tokens attend to each other: all keys are stored before
        # scratch, all float32 rows
        "x",  # (n_tokens, dim): the residual stream
        "x_stride",
        "normed",  # ACTIVATIONS of dim columns
        "q",  # (n_tokens, n_heads * head_dim)
        "q_stride",
        "k",
        "v",
        "kv_stride",
        "attended",  # ACTIVATIONS of n_heads * head_dim columns
        "gate",  # (n_tokens, ffn_dim), of experts (places, ffn_dim)
        "up",
        "ffn_stride",
        "hidden",  # ACTIVATIONS of ffn_dim columns
        "work",  # a thread's own scratch for attention
        "work_stride",
        "query_rows",  # for which it has room
        "panels",  # a thread's own scratch for products
        "panels_stride",
        "logits",  # (n_outputs, vocabulary padded to 16)
        "logits_stride",
        "greatest",  # (n_outputs, runs) float32: the greatest logit of each run of 64
        "masses",  # of the same shape: its sum of e^(x - greatest)
        "runs_stride",
        "row_sums",  # of each row, ROW_SUMS_BYTES apart: the sum of e^(x - greatest), float32, and
        # the first run that has the greatest logit, int32
        "top_wanted",  # 1 if these three are
        # the team
        "team",  # words of team.py
        "n_threads",
        "counters",  # one cache line for every piece of shared work in a step
    ),
    ("norm_eps",),
)
"""All that one forward pass reads and writes."""

MIXTURE = Record(
    "Mixture",
    (
        "n_experts",
        "n_used",
        "normalised",  # 1 if the weights of a token's experts sum up to 1
        "logits",  # (n_tokens, n_experts) float32: the router's
        "logits_stride",
        "probabilities",  # of the same shape, a row for each thread or token
        "chosen",  # (n_tokens, n_used) int64: experts, the most probable first
        "weights",  # (n_tokens, n_used) float32
        "places",  # (n_tokens, n_used) int64: rows below, where the tokens of an expert stand
        # of several tokens: they go through one expert together
        "active",  # (n_active,) int64: experts that have tokens
        "n_active",
        "counts",  # (n_experts,) int64: tokens of each
        "filled",  # (n_experts,) int64: those that have their place
        "starts",  # (n_experts,) int64: the place of the first
        "row_weights",  # (places,) float32
        "inputs",  # ACTIVATIONS of dim columns, a row for each place
        "expert_inputs",  # (n_experts,) ACTIVATIONS: the rows of one expert
        "expert_hidden",  # the same of what ffn_down multiplies
        "outputs",  # (places, dim) float32
        "outputs_stride",
    ),
)
"""Which experts take which tokens, and what they work in."""

SPAN = Record(
    "Span",
    (
        "token",  # the tile: consecutive tokens of one sequence
        "n_tokens",
        "first_part",  # the parts of the positions that this span takes
        "last_part",  # excluded
        "n_parts",  # of the whole tile
        "partials",  # where the tile's spans meet: (KV heads, parts, rows) results; 0 for one span
        "n_spans",
        "finished",  # (KV heads,) int64: spans that have ended, zero before and after
        "stores",  # 1 if it first puts the token's key and value into the cache
    ),
)
"""A tile's attention over some parts of its positions: what a thread takes at a time."""

PART_TOKENS = 256
"""Positions whose attention is taken together before it is merged with that of the others."""
SCORES_STEP = 4 * PART_TOKENS + 64
"""Bytes from a row's scores to the next one's; no power of two, which would share cache sets."""
SPARE_QUERY_ROWS = 6
"""Rows of the highest register tile, up to which the rows of a tile are filled up."""

PACKING = Record(
    "Packing",
    (
        "source",  # stored rows
        "source_row_bytes",
        "n_rows",
        "n_cols",  # a multiple of 32
        "n_groups",
        "target",  # packed groups
        "bytes_a_group",
        "dequantise",  # kernels by address; 0 where rows keep their type
        "quantise",
        "interleave",
        "row_bytes",  # of a row in the new type
        "work",  # a thread's scratch: a row of float32 and 16 rows of the new type
        "work_bytes",
        "counter",
    ),
)
"""A matrix on its way from the file to its packed layout."""

READING = Record("Reading", ("data", "part_bytes", "ahead"))
"""What a bandwidth measurement reads: a part for each thread, prefetching ``ahead`` bytes."""

RUN_LOGITS = 64
"""Neighbouring logits that are summed up together."""
ROW_SUMS_BYTES = 8
LINE = 64
"""Bytes of a cache line, which a counter has to itself."""
COUNTERS_A_LAYER = 8
"""Pieces of shared work in a layer: q, k, v, the attention's output, the FFN's two halves, the
attention itself, the router."""

# The words of a team, in bytes from its start.  Those that threads wait on stand on a cache line
# of their own, two where CPUs fetch lines in pairs, so that nobody who waits is disturbed by
# writes to another.
GENERATION, PHASE, ARRIVED, JOB = range(0, 4 * 128, 128)
SLEEPERS = 8
"""From a word that threads wait on to the number of those that sleep there."""
ARGUMENT, N_THREADS, BARRIER_SPINS, IDLE_SPINS = range(JOB + 8, JOB + 40, 8)


def team_words() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the zeroed words of a team; they must not move while it lives."""
    return np.zeros(JOB // 8 + 16, np.int64)
