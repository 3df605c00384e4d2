"""How fast this machine reads memory: the floor under the time of a decoded token."""

from __future__ import annotations

import statistics
import time
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.cpu import compiler
from pyrllama.cpu.records import READING, Records
from pyrllama.cpu.team import Team

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUFFER_BYTES = 1 << 30
"""Far more than any cache that a process has to itself."""
STREAMS = ("reading.one_stream", "reading.two_streams", "reading.four_streams")
AHEAD = (0, 512, 1024, 1536)
"""Bytes ahead that are prefetched; 0 is no prefetch."""
STREAM_ONCE, AHEAD_ONCE = "reading.one_stream_once", (1024, 5120)
"""As weights are read: past the larger caches."""
TRIALS = 2
"""Times that every pattern is tried before only the best ones go on."""
FINALISTS = 4
REPETITIONS = 5
MAX_SECONDS = 5.0
"""After this time no pattern is repeated: slow memory is measured less often."""


class Pattern(NamedTuple):
    """A way to read: the kernel, and how far ahead it prefetches."""

    kernel: str
    ahead: int


PATTERNS = (
    *(Pattern(*both) for both in product(STREAMS, AHEAD)),
    *(Pattern(STREAM_ONCE, ahead) for ahead in AHEAD_ONCE),
)


def read_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Return the bytes per second that ``threads`` threads together read from memory.

    Every thread reads its own part of a large buffer as one, two and four streams, each without
    and with prefetches of 512, 1,024 and 1,536 bytes ahead, and as one that leaves the larger
    caches out, 1,024 and 5,120 bytes ahead.  The result is the best pattern's median; the four
    that are fastest at first are repeated five times, the others twice.
    """
    buffer = np.ones(buffer_bytes // 8, np.int64)  # written, so that every page is a real one
    record = Records(READING)
    names = {pattern.kernel for pattern in PATTERNS}
    kernels = {name: compiler.load(name) for name in names}  # compiled before time counts
    part = buffer.nbytes // threads // 4096 * 4096
    team = Team(threads)

    def seconds(pattern: Pattern) -> float:
        record.set(data=buffer.ctypes.data, part_bytes=part, ahead=pattern.ahead)
        start = time.perf_counter()
        team.run(kernels[pattern.kernel], record.address)
        return time.perf_counter() - start

    try:
        return part * threads / best_median(seconds)
    finally:
        team.close()


def best_median(seconds: Callable[[Pattern], float]) -> float:
    """Return the least median time of the patterns; ``seconds`` runs one and times it."""
    deadline = time.perf_counter() + MAX_SECONDS
    patterns: Sequence[Pattern] = PATTERNS
    times: dict[Pattern, list[float]] = {pattern: [] for pattern in patterns}
    for repetition in range(REPETITIONS):
        if repetition == TRIALS:
            patterns = sorted(patterns, key=lambda pattern: min(times[pattern]))[:FINALISTS]
        for pattern in patterns:
            if times[pattern] and time.perf_counter() > deadline:
                break
            times[pattern].append(seconds(pattern))
    return min(statistics.median(taken) for taken in times.values())
