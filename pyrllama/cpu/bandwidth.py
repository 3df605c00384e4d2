"""How fast this machine reads memory: the floor under the time of a decoded token."""

from __future__ import annotations

import statistics
import time
from itertools import product

import numpy as np

from pyrllama.cpu import compiler
from pyrllama.cpu.records import READING, Records
from pyrllama.cpu.team import Team

BUFFER_BYTES = 1 << 30
"""Far more than any cache that a process has to itself."""
REPETITIONS = 5
PATTERNS = ("reading.one_stream", "reading.two_streams", "reading.four_streams")
AHEAD = (0, 1024)
"""Bytes ahead that are prefetched; 0 is no prefetch."""


def read_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Return the bytes per second that ``threads`` threads together read from memory.

    Every thread reads its own part of a large buffer as one, two and four streams, each with
    and without prefetching; the result is the best pattern's median.
    """
    buffer = np.ones(buffer_bytes // 8, np.int64)  # written, so that every page is a real one
    record = Records(READING)
    part = buffer.nbytes // threads // 4096 * 4096
    team = Team(threads)
    seconds: dict[tuple[str, int], list[float]] = {}
    try:
        for _ in range(REPETITIONS):
            for pattern in product(PATTERNS, AHEAD):
                record.set(data=buffer.ctypes.data, part_bytes=part, ahead=pattern[1])
                start = time.perf_counter()
                team.run(compiler.load(pattern[0]), record.address)
                seconds.setdefault(pattern, []).append(time.perf_counter() - start)
    finally:
        team.close()
    return part * threads / min(statistics.median(times) for times in seconds.values())
