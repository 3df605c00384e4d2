"""Copies between the host and a device, through memory that the device reaches by itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.opencl.device import pyopencl

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


class Transfers:
    """Pinned host memory, mapped once, and copies from and to it in the order of a queue.

    What ``begin_fetch`` reads goes through a queue of its own.
    What is sent must stay as it is until something sent or launched behind it was waited for.
    """

    def __init__(self, context: Any, queue: Any) -> None:
        self._context, self._queue = context, queue
        self._reading = pyopencl().CommandQueue(context)
        """What is read here holds up nothing that is computed behind it."""
        self._maps: list[tuple[Any, Any]] = []
        self._events: list[Any] = []
        """Of the copies on their way: PyOpenCL waits for a copy whose event is dropped."""

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return zeroed memory of the host that the device copies from and to directly."""
        cl = pyopencl()
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if n_bytes == 0:  # which no buffer may be
            return np.empty(shape, dtype)
        buffer = cl.Buffer(self._context, flags, n_bytes)
        access = cl.map_flags.READ | cl.map_flags.WRITE
        array, _ = cl.enqueue_map_buffer(self._queue, buffer, access, 0, shape, dtype)
        self._maps.append((buffer, array.base))
        array.fill(0)
        return array  # type: ignore[no-any-return]

    def send(self, buffer: Any, values: NDArray[Any]) -> None:
        """Copy an array to the beginning of a buffer, without waiting."""
        event = pyopencl().enqueue_copy(self._queue, buffer, values, is_blocking=False)
        self._events.append(event)

    def fetch(
        self, out: NDArray[Any], buffer: Any, offset: int = 0, *, wait: bool = True
    ) -> NDArray[Any]:
        """Fill an array from a buffer's byte ``offset`` on, and wait for all that was enqueued."""
        event = pyopencl().enqueue_copy(
            self._queue, out, buffer, src_offset=offset, is_blocking=wait
        )
        if wait:
            self._events.clear()
        else:
            self._events.append(event)
        return out

    def begin_fetch(self, out: NDArray[Any], buffer: Any, offset: int, behind: Any) -> Any:
        """Fill an array from a buffer's byte ``offset`` on without waiting.

        It is read as soon as the launch is done whose event is ``behind``, whatever was enqueued
        since, which may not write there.  Returns the event to ``wait_for``.
        """
        self._queue.flush()
        return pyopencl().enqueue_copy(
            self._reading, out, buffer, src_offset=offset, wait_for=[behind], is_blocking=False
        )

    def wait_for(self, event: Any) -> None:
        """Wait for a copy, and so for all that was enqueued before it."""
        event.wait()
        self._events.clear()

    def forget(self, event: Any) -> None:
        """Let a copy come that nobody waits for; its array is free once another was waited for."""
        self._events.append(event)

    def wait(self) -> None:
        """Wait for all that was enqueued."""
        self._queue.finish()
        self._reading.finish()
        self._events.clear()

    def close(self) -> None:
        """Free the memory; no array of it may be used any more."""
        with contextlib.suppress(pyopencl().Error):  # a device that has failed holds nothing
            self.wait()
            for buffer, memory in self._maps:
                memory.release(self._queue)
                buffer.release()
        self._maps.clear()
