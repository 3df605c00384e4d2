"""Rows of logits summed up run by run, so that few numbers tell where the greatest ones are."""

from __future__ import annotations

import numpy as np

from pyrllama.cpu.kernel import View, inline, kernel, part, view
from pyrllama.cpu.norm import exponential
from pyrllama.cpu.records import MATRIX, ROW_SUMS_BYTES, RUN_LOGITS, STEP
from pyrllama.cpu.simd import (
    keep_first,
    load_f32,
    load_f32x16,
    max_f32,
    maximum,
    splat_f32,
    store,
    sum_f32,
)

Matrix = view(MATRIX)
Step = view(STEP)

f32, i32 = np.float32, np.int32
LOWEST = f32(np.finfo(np.float32).min)
"""Stands where a run has fewer logits."""


@inline
def sum_up_run(x: int, n: int, greatest: int, mass: int) -> None:
    """Write the greatest of a run's ``n`` logits, and their sum of ``e^(x - greatest)``.

    The sum is NaN where a logit is not finite, and does not depend on what else is in the row.
    """
    peaks, odd = splat_f32(LOWEST), splat_f32(0.0)
    for i in range(0, RUN_LOGITS, 16):
        v = keep_first(load_f32x16(x + 4 * i), n - i, LOWEST)
        peaks = maximum(v, peaks)
        odd = odd + v * f32(0.0)
    peak = max_f32(peaks)
    total = splat_f32(0.0)
    for i in range(0, RUN_LOGITS, 16):
        v = keep_first(load_f32x16(x + 4 * i), n - i, LOWEST)
        total = total + exponential(v - peak)
    store(greatest, peak)
    store(mass, sum_f32(total + odd))


@part
def sum_up_runs(s: View, worker: int) -> None:
    """Sum up this thread's part of the runs of every row."""
    n = Matrix(s.output).n_rows
    n_runs = (n + RUN_LOGITS - 1) // RUN_LOGITS
    first, last = n_runs * worker // s.n_threads, n_runs * (worker + 1) // s.n_threads
    for row in range(s.n_outputs):
        x, results = s.logits + row * s.logits_stride, row * s.runs_stride
        for run in range(first, last):
            place, begin = results + 4 * run, RUN_LOGITS * run
            sum_up_run(x + 4 * begin, n - begin, s.greatest + place, s.masses + place)


@inline
def first_reaching(greatest: int, n_runs: int, peak: float) -> int:
    """Return the first run whose greatest logit is that of the row."""
    for run in range(n_runs):
        if load_f32(greatest + 4 * run) == peak:
            return run
    return 0


@part
def sum_up_rows(s: View, worker: int) -> None:
    """Write of this thread's part of the rows the sum, and the run of the greatest logit.

    Runs are taken in their order, and each is the same to the last bit, however many threads there
    are and whatever other rows.
    """
    n_runs = (Matrix(s.output).n_rows + RUN_LOGITS - 1) // RUN_LOGITS
    for row in range(worker, s.n_outputs, s.n_threads):
        greatest, masses = s.greatest + row * s.runs_stride, s.masses + row * s.runs_stride
        for run in range(n_runs, (n_runs + 15) // 16 * 16):
            store(greatest + 4 * run, LOWEST)
        peaks = splat_f32(LOWEST)
        for i in range(0, 4 * n_runs, 64):
            peaks = maximum(load_f32x16(greatest + i), peaks)
        peak, total = max_f32(peaks), splat_f32(0.0)
        for i in range(0, 4 * n_runs, 64):
            total = total + load_f32x16(masses + i) * exponential(load_f32x16(greatest + i) - peak)
        sums = s.row_sums + row * ROW_SUMS_BYTES
        store(sums, sum_f32(total))
        store(sums + 4, i32(first_reaching(greatest, n_runs, peak)))


@kernel
def sum_up_kernel(step: int, worker: int, rows: int) -> None:
    """Entry for tests of ``sum_up_runs`` and, behind it, ``sum_up_rows``."""
    if rows:
        sum_up_rows(Step(step), worker)
    else:
        sum_up_runs(Step(step), worker)
