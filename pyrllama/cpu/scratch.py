"""Memory that a forward pass works in: rows of floats, and activations in all their forms."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.cpu.formats import BLOCK
from pyrllama.cpu.records import (
    ACTIVATIONS,
    BLOCK_WORDS,
    GROUPS_AT_ONCE,
    LINE,
    PANEL_BLOCKS,
    PANEL_BYTES,
    ROWS_AT_ONCE,
    SIXES_AT_ONCE,
    SUMS,
    TILE_BLOCKS,
    TILE_ROWS,
    Records,
)
from pyrllama.cpu.shorts import BLOCK_BYTES as SHORT_BLOCK_BYTES

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

HUGE_PAGE = 1 << 21


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than ``n``."""
    return -(-n // multiple) * multiple


def huge_pages(n_bytes: int) -> NDArray[np.uint8]:
    """Return zeroed memory, on huge pages where the system has them.

    A product walks through many rows at once, and looking up a small page for every few lines
    costs it more than the lines.  Pages that are never touched cost no memory.  Raises
    ``OSError``, ``ValueError`` or ``OverflowError`` for what cannot be had.
    """
    # Private: shared memory, which Python asks for by default, gets small pages from most
    # systems, and a forked child would write into its parent's.
    private = (
        {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    )
    pages = mmap.mmap(-1, n_bytes + HUGE_PAGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(pages, np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE
    return memory[start : start + n_bytes]


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return a zeroed array that begins with a cache line."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes >= HUGE_PAGE:
        memory = huge_pages(n_bytes)
    else:
        memory = np.zeros(n_bytes + LINE, np.uint8)
        start = -memory.ctypes.data % LINE
        memory = memory[start : start + n_bytes]
    return memory.view(dtype).reshape(shape)


def spare_rows(rows: int) -> int:
    """Return the rows that products of ``rows`` rows may write: whole tiles, whole sixes."""
    return max(round_up(rows, TILE_ROWS), round_up(rows, ROWS_AT_ONCE))


def panel_bytes() -> int:
    """Return the scratch that a thread's products of several rows need.

    One of: a panel, the sums of the groups and rows that meet at once, and these rows' columns as
    numbers of 16 bits; the tiles of two groups.
    """
    sums = 64 * ROWS_AT_ONCE * GROUPS_AT_ONCE * SIXES_AT_ONCE
    shorts = SIXES_AT_ONCE * PANEL_BLOCKS * SHORT_BLOCK_BYTES + LINE
    tiles = LINE + 2 * 1024 * TILE_BLOCKS
    return max(PANEL_BYTES + sums + shorts, tiles)


class Rows:
    """Float32 rows for kernels, each with zeros behind it for whole vectors beyond its end.

    There are some more than ``count``, which products of whole tiles may write.
    """

    def __init__(self, count: int, n: int) -> None:
        self.values = aligned_zeros((spare_rows(count), round_up(n, BLOCK) + BLOCK), np.float32)
        self.address = self.values.ctypes.data
        self.stride = self.values.strides[0]


class QuantisedRows:
    """Memory for rows of activations as int8, alone and six by six, which a record tells of."""

    def __init__(self, rows: int, n_cols: int) -> None:
        n_blocks, sixes = n_cols // BLOCK, -(-rows // ROWS_AT_ONCE)
        self.q = aligned_zeros((rows, n_cols), np.int8)
        self.scales = aligned_zeros((rows, n_blocks), np.float32)
        self.sums = aligned_zeros((rows, n_blocks, SUMS), np.int32)
        self.scaled_sums = aligned_zeros((rows, n_blocks, SUMS), np.float32)
        self.bytes = aligned_zeros((sixes, n_blocks, BLOCK_WORDS, ROWS_AT_ONCE), np.int32)

    @property
    def fields(self) -> dict[str, int]:
        """The fields of an ACTIVATIONS record that tell where they are."""
        return {
            "q": self.q.ctypes.data,
            "q_stride": self.q.strides[0],
            "scales": self.scales.ctypes.data,
            "sums": self.sums.ctypes.data,
            "scaled_sums": self.scaled_sums.ctypes.data,
            "block_stride": self.scales.strides[0],
            "bytes": self.bytes.ctypes.data,
            "bytes_stride": self.bytes.strides[0],
        }


class ActivationRows:
    """Rows of activations in all forms, with their record and that of their wide form."""

    def __init__(self, count: int, n: int) -> None:
        n_cols, rows = round_up(n, BLOCK), spare_rows(count)
        self.x = Rows(count, n)
        self._blocks, self._super_blocks = QuantisedRows(rows, n_cols), QuantisedRows(rows, n_cols)
        self._floats = aligned_zeros((-(-rows // ROWS_AT_ONCE), n_cols, ROWS_AT_ONCE), np.float32)
        self._tiles = aligned_zeros((round_up(rows, TILE_ROWS), n_cols), np.int16)
        self._records = Records(ACTIVATIONS, 2)
        for index, quantised in enumerate((self._blocks, self._super_blocks)):
            self._records.set(
                index,
                x=self.x.address,
                x_stride=self.x.stride,
                n_cols=n_cols,
                floats=self._floats.ctypes.data,
                floats_stride=self._floats.strides[0],
                tiles=self._tiles.ctypes.data,
                wide=self._records.address_of(1),
                **quantised.fields,
            )
        self.address = self._records.address

    @property
    def words(self) -> NDArray[np.int64]:
        """The words of both records, ``(2, words)``."""
        return self._records.words
