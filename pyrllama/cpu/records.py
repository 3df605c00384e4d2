"""The structures in memory that Python fills and kernels read: fields of eight bytes each.

A record is a row of 64-bit words.  Python sets words by field name; a kernel reads them as
attributes of a view (``kernel.view``).  The definitions stand here, apart from both, so that
they are written once and need no Numba.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        return 8 * (*self.integers, *self.floats).index(field)


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
        "product",  # address of the kernel that multiplies it
        "row",  # address of the kernel that unpacks one row
        "bytes_a_group",
        "quantised",  # 1 if its kernel wants the activations as int8
    ),
)
"""A weight matrix in the layout of ``layout.py``."""

ACTIVATIONS = Record(
    "Activations",
    (
        "x",  # (rows, stride) float32
        "x_stride",  # bytes from a row to the next
        "q",  # (rows, n_cols) int8, blocks of 32
        "q_stride",
        "scales",  # (rows, n_cols / 32) float32
        "sums",  # (rows, n_cols / 32) int32: sums of the int8 of a block
        "block_stride",  # bytes from a row of scales, or of sums, to the next
        "n_cols",  # padded with zeros to whole blocks of 32
    ),
)
"""Rows of activations as float32 and, once quantised, as int8 with a scale for 32 columns."""

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
        "dim",
        "ffn_dim",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "head_stride",  # head_dim padded to 16
        "rope",  # (positions, 2, head_stride) float32: cosines, then signed sines
        # the cache
        "cache",  # blocks of keys and values
        "store",  # kernels of attention.py, by address
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
        "gate",  # (n_tokens, ffn_dim)
        "up",
        "ffn_stride",
        "hidden",  # ACTIVATIONS of ffn_dim columns
        "work",  # a thread's own scratch for attention
        "work_stride",
        "logits",  # (n_outputs, vocabulary padded to 16)
        "logits_stride",
        # the team
        "team",  # words of team.py
        "n_threads",
        "counters",  # one cache line for every piece of shared work in a step
    ),
    ("norm_eps",),
)
"""All that one forward pass reads and writes."""

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

LINE = 64
"""Bytes of a cache line, which a counter has to itself."""
COUNTERS_A_LAYER = 6
"""Pieces of shared work in a layer: q, k, v, the attention's output, the FFN's two halves."""

# The words of a team, in bytes from its start: each stands on a cache line of its own, so that
# threads which wait on one are not disturbed by writes to another.
GENERATION, JOB, ARGUMENT, N_THREADS, ARRIVED, PHASE = range(0, 6 * 128, 128)
WORKERS = 1024
"""Bytes of a thread's own words; thread 0's place holds the team's."""
STATE, WAKE, SEEN = 0, 128, 256
AWAKE, ASLEEP = 0, 1
"""What a worker's state can be."""


def team_words(n_threads: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the zeroed words of a team; they must not move while it lives."""
    return np.zeros(n_threads * WORKERS // 8, np.int64)
