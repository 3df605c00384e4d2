"""How fast a device's memory is: the limit that a decoded token is measured by."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.opencl.device import device_errors, pyopencl

if TYPE_CHECKING:
    from pyrllama.opencl.device import Device

BUFFER_BYTES = 1 << 31
REPETITIONS = 5
COPIES = 4
"""Copies that are enqueued before the clock is read again."""


def copy_bandwidth(device: Device, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Return the bytes per second that a copy inside the device's memory reads and writes."""
    cl = pyopencl()
    n_bytes = min(buffer_bytes, device.max_buffer, device.memory // 8)
    with device_errors(device, "measuring its bandwidth"):
        context = cl.Context([device.handle])
        queue = cl.CommandQueue(context)
        source, target = (cl.Buffer(context, cl.mem_flags.READ_WRITE, n_bytes) for _ in range(2))
        cl.enqueue_fill_buffer(queue, source, np.ones(4, np.uint32), 0, n_bytes // 16 * 16)
        seconds = []
        for _ in range(REPETITIONS + 1):
            queue.finish()
            start = time.perf_counter()
            for _ in range(COPIES):
                cl.enqueue_copy(queue, target, source, byte_count=n_bytes)
            queue.finish()
            seconds.append((time.perf_counter() - start) / COPIES)
        for buffer in (source, target):
            buffer.release()
    return 2 * n_bytes / statistics.median(seconds[1:])  # the first one makes the pages
