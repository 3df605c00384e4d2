"""Runs of logits summed up, so that few numbers tell where a row's greatest ones are."""

from __future__ import annotations

import numpy as np

from pyrllama.cpu.kernel import View, inline, kernel, part, view
from pyrllama.cpu.norm import exponential
from pyrllama.cpu.records import MATRIX, RUN_LOGITS, STEP
from pyrllama.cpu.simd import keep_first, load_f32x16, max_f32, maximum, splat_f32, store, sum_f32

Matrix = view(MATRIX)
Step = view(STEP)

f32 = np.float32
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


@kernel
def sum_up_runs_kernel(step: int, worker: int) -> None:
    """Entry for tests of ``sum_up_runs``."""
    sum_up_runs(Step(step), worker)
