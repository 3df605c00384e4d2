"""Matrix products as parts of a step: handed out in chunks, by the kernel that fits the rows."""

from __future__ import annotations

from pyrllama.cpu.barrier import take
from pyrllama.cpu.kernel import View, call, inline, part, view
from pyrllama.cpu.records import MATRIX, TILED_ROWS, TILES, WIDE_BYTES
from pyrllama.cpu.simd import load_f32x16, store

Matrix = view(MATRIX)


@inline
def chunk_of(n_groups: int, n_threads: int) -> int:
    """Return how many groups a thread takes at a time: by fours, and for some eight rounds."""
    return max(n_groups // (32 * n_threads) * 4, 4)


@inline
def whole_blocks(chunk: int, form: int) -> int:
    """Return a chunk whose results, as columns of the next product, are whole blocks of a form."""
    return (chunk + 15) // 16 * 16 if form & WIDE_BYTES else chunk


@inline
def most_at_once(n_groups: int, n_rows: int, n_threads: int) -> int:
    """Return the most groups that a thread takes at a time.

    A row alone only streams weights, which each new run of groups interrupts; results of several
    rows must stay in caches, too.
    """
    return n_groups if n_rows == 1 else chunk_of(n_groups, n_threads)


@inline
def share_of(left: int, most: int, n_threads: int, least: int) -> int:
    """Return how many of the groups that are left a thread takes: half of its part of them.

    So threads take few only at the end, where they would wait for each other otherwise.
    """
    return max(min(left // (2 * n_threads * least), most // least) * least, least)


@inline
def begin_of(
    n_shares: int, first: int, n_groups: int, most: int, n_threads: int, least: int
) -> int:  # fmt: skip
    """Return where the share begins that is so many behind the one that begins at ``first``."""
    for _ in range(n_shares):
        first += share_of(n_groups - first, most, n_threads, least)
    return first


@inline
def multiply_groups(
    s: View, matrix: int, activations: int, row: int, n_rows: int,
    out: int, out_stride: int, first: int, last: int, accumulate: int, worker: int,
) -> None:  # fmt: skip
    """Multiply groups of a matrix with one row, several, or enough to fill matrix tiles."""
    m = Matrix(matrix)
    panel = s.panels + worker * s.panels_stride
    if n_rows == 1:
        call(m.matvec, matrix, activations, row, out, first, last, accumulate)
    elif tiled(m, n_rows):
        call(
            m.tile_matmul, matrix, activations, n_rows, out, out_stride, first, last,
            accumulate, panel,
        )  # fmt: skip
    else:
        call(
            m.matmul, matrix, activations, n_rows, out, out_stride, first, last,
            accumulate, panel,
        )  # fmt: skip


@inline
def tiled(m: View, n_rows: int) -> bool:
    """Whether a product of so many rows goes through matrix tiles."""
    return m.tile_matmul != 0 and n_rows >= TILED_ROWS


@inline
def form_for(matrix: int, n_rows: int) -> int:
    """Return the form of activations that a product wants, as a bit."""
    m = Matrix(matrix)
    form: int = m.form
    return TILES if tiled(m, n_rows) else form


@inline
def begin_with(bias: int, out: int, out_stride: int, n_rows: int, first: int, last: int) -> None:
    """Write a bias to groups of every row, for a product to be added to it."""
    for r in range(n_rows):
        for i in range(64 * first, 64 * last, 64):
            store(out + r * out_stride + i, load_f32x16(bias + i))


@part
def multiply(
    s: View, matrix: int, activations: int, row: int, n_rows: int,
    out: int, out_stride: int, counter: int, worker: int, accumulate: int, bias: int,
) -> None:  # fmt: skip
    """Do this thread's shares of a matrix product, to which a ``bias`` is added unless it is 0."""
    m = Matrix(matrix)
    n_groups, threads, least = m.n_groups, s.n_threads, 4
    most = most_at_once(n_groups, n_rows, threads)
    add = 1 if bias else accumulate
    nth = take(counter, 1)
    g = begin_of(nth, 0, n_groups, most, threads, least)
    while g < n_groups:
        last = min(g + share_of(n_groups - g, most, threads, least), n_groups)
        if bias:
            begin_with(bias, out, out_stride, n_rows, g, last)
        multiply_groups(s, matrix, activations, row, n_rows, out, out_stride, g, last, add, worker)
        taken, nth = nth, take(counter, 1)
        g = begin_of(nth - taken, g, n_groups, most, threads, least)
