"""Kernels that only read memory, to measure what it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.cpu.instructions import prefetch, prefetch_once
from pyrllama.cpu.kernel import KernelFunction, inline, kernel, view
from pyrllama.cpu.records import READING
from pyrllama.cpu.simd import load_i32x16, splat_i32, store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.vectors import Lanes

Reading = view(READING)


@inline
def read_256(p: int, found: Lanes) -> Lanes:
    """Read four cache lines and gather their bits, or LLVM would not read at all."""
    for line in range(0, 256, 64):
        found = found | load_i32x16(p + line)
    return found


def reader(n_streams: int, ask: Callable[[int], None] = prefetch) -> KernelFunction:
    """Return a kernel by which each thread reads its part as ``n_streams`` streams."""

    @kernel
    def read(reading: int, worker: int) -> None:
        """Read this worker's part, prefetching if ``ahead`` is not 0, and keep what was found."""
        r = Reading(reading)
        start = r.data + worker * r.part_bytes
        stream = r.part_bytes // n_streams
        found = splat_i32(0)
        if r.ahead == 0:
            for i in range(0, stream, 256):
                for n in range(n_streams):
                    found = read_256(start + n * stream + i, found)
        else:
            for i in range(0, stream, 256):
                for n in range(n_streams):
                    p = start + n * stream + i
                    for line in range(0, 256, 64):
                        ask(p + r.ahead + line)
                    found = read_256(p, found)
        store(start, found)

    return read


one_stream = reader(1)
two_streams = reader(2)
four_streams = reader(4)
one_stream_once = reader(1, prefetch_once)
