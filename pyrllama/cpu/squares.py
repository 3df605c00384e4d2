"""Sums of the squares of what matrices multiply, column by column: what importance is made of.

A square of a float32 is exact in float64, and rows are added in the order of their tokens by one
thread a column, so that the sums do not depend on the threads or on how a text is cut.
"""

from __future__ import annotations

from pyrllama.cpu.kernel import inline, kernel, part, view
from pyrllama.cpu.records import ACTIVATIONS
from pyrllama.cpu.simd import load_f32x16, load_f64x16, store, widen_f32

Activations = view(ACTIVATIONS)


@part
def add_squares(
    activations: int, row: int, n_rows: int, sums: int, worker: int, n_threads: int
) -> None:
    """Add the squares of float rows to float64 sums, this thread's share of the columns.

    ``sums`` is on a cache line, so that no two threads write to the same one; 0 counts nothing.
    """
    if sums == 0:
        return
    a = Activations(activations)
    x = a.x + row * a.x_stride
    add_columns(x, a.x_stride, n_rows, sums, 16 * worker, a.n_cols, 16 * n_threads)


@inline
def add_columns(
    x: int, stride: int, n_rows: int, sums: int, first: int, last: int, step: int
) -> None:
    """Add the squares of the 16 columns at each ``step`` of rows that begin at ``x``."""
    for column in range(first, last, step):
        total = load_f64x16(sums + 8 * column)
        place = x + 4 * column
        for _ in range(n_rows):
            value = widen_f32(load_f32x16(place))
            total = total + value * value
            place += stride
        store(sums + 8 * column, total)


@kernel
def add_squares_kernel(
    activations: int, row: int, n_rows: int, sums: int, worker: int, n_threads: int
) -> None:
    """Entry for tests of ``add_squares``."""
    add_squares(activations, row, n_rows, sums, worker, n_threads)
