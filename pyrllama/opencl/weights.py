"""Weights on their way from a checkpoint into a device's memory."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama import quants
from pyrllama.errors import DeviceError, UnsupportedTypeError
from pyrllama.models.llama import is_router
from pyrllama.opencl.device import device_errors, pyopencl
from pyrllama.opencl.layout import (
    ALIGNMENT,
    LAYOUTS,
    convert,
    extent_of,
    held_type,
    pack,
    round_up,
)
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.layout import Extent

SLICE_BYTES = 1 << 25
"""Stored bytes that are converted and copied before the file's pages are given back."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix on the device: parts of a large buffer, as arguments of a kernel."""

    extent: Extent
    units: Any
    scales: Any
    """None for types without blocks, which kernels take as a null pointer."""
    buffer: int
    """Which of the large buffers holds it."""
    offset: int
    """Bytes from that buffer's start to the units; the scales follow at ``scale_offset``."""

    @property
    def scale_offset(self) -> int:
        """Bytes from the buffer's start to the scales."""
        return self.offset + round_up(self.extent.unit_bytes, ALIGNMENT)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments that stand for it in a kernel."""
        rows, n_units = np.int32(self.extent.rows), np.int32(self.extent.n_units)
        return self.units, self.scales, rows, n_units


def room_for(extent: Extent) -> int:
    """Return the bytes that a matrix takes, alignment included."""
    return round_up(extent.unit_bytes, ALIGNMENT) + round_up(extent.scale_bytes, ALIGNMENT)


@dataclass(frozen=True, slots=True)
class Stack:
    """Tensors whose rows are multiplied as one matrix, all of one type.

    Of matrices of experts, the rows of all tensors for an expert stand before the next one's.
    """

    names: tuple[str, ...]
    extent: Extent
    experts: int = 1


def stacks(checkpoint: Checkpoint, names: Sequence[str], wanted: TensorType | None) -> list[Stack]:
    """Join neighbouring tensors of the same type and columns into stacks.

    Routers, which are small and decide much, are held in F32.  Raises ``UnsupportedTypeError``
    for a type that no kernel runs.
    """
    found: list[Stack] = []
    for name in names:
        info = checkpoint.tensors[name]
        *experts, rows, cols = info.shape
        kind = TensorType.F32 if is_router(name) else held_type(info.type, cols, wanted)
        if kind not in LAYOUTS:
            running = ", ".join(known.name for known in LAYOUTS)
            raise UnsupportedTypeError(
                checkpoint.path,
                f"{name} would be held as {kind.name}, which cannot run on OpenCL yet; the types "
                f"that run are {running}",
            )
        n_experts = math.prod(experts)
        joined: tuple[str, ...] = (name,)
        n_rows = n_experts * rows
        if found and found[-1].extent.kind is kind:
            before = found.pop()
            joined, n_rows = (*before.names, name), before.extent.rows + n_rows
        found.append(Stack(joined, extent_of(kind, (n_rows, cols)), n_experts))
    return found


class DeviceMemory:
    """The large buffers of a device that hold all matrices of a stage."""

    def __init__(self, device: Device, context: Any, stacks: Iterable[Stack]) -> None:
        self._device = device
        self._cl = pyopencl()
        self._places: list[tuple[int, int]] = []
        sizes = [0]
        for stack in stacks:
            n_bytes = room_for(stack.extent)
            if n_bytes > device.max_buffer:
                raise DeviceError(
                    f"OpenCL device {device} holds no buffer of {n_bytes / 1e9:.1f} GB for "
                    f"{' and '.join(stack.names)}; choose a smaller type with --quantize, or "
                    f"--backend cpu"
                )
            if sizes[-1] + n_bytes > device.max_buffer:
                sizes.append(0)
            self._places.append((len(sizes) - 1, sizes[-1]))
            sizes[-1] += n_bytes
        flags = self._cl.mem_flags.READ_ONLY
        with device_errors(device, "making room for the weights"):
            self.buffers = [self._cl.Buffer(context, flags, max(n, ALIGNMENT)) for n in sizes]

    def place(self, index: int, extent: Extent) -> Matrix:
        """Return the matrix whose extent was given at ``index``; its bytes are not there yet."""
        buffer, offset = self._places[index]
        whole = self.buffers[buffer]
        units = whole.get_sub_region(offset, extent.unit_bytes)
        after = offset + round_up(extent.unit_bytes, ALIGNMENT)
        scales = whole.get_sub_region(after, extent.scale_bytes) if extent.scale_bytes else None
        return Matrix(extent, units, scales, buffer, offset)


def upload(
    queue: Any,
    matrix: Matrix,
    stack: Stack,
    checkpoint: Checkpoint,
    progress: Callable[[int], None],
) -> None:
    """Read, convert and copy a stack's tensors a slice at a time; report bytes that are done."""
    cl, extent = pyopencl(), matrix.extent
    row_bytes, scale_bytes = (n // extent.rows for n in (extent.unit_bytes, extent.scale_bytes))
    before = 0
    for name in stack.names:
        tensor = checkpoint.read(name)
        rows, cols = tensor.info.shape[-2:]
        at_once = max(1, SLICE_BYTES // tensor.data.shape[1])
        for here, row in _slices(stack, rows, before, at_once):
            part = tensor.data[here]
            units, scales = pack(
                extent.kind, convert(tensor.info.type, part, cols, extent.kind), cols
            )
            cl.enqueue_copy(queue, matrix.units, units, dst_offset=row * row_bytes)
            if matrix.scales is not None:
                cl.enqueue_copy(queue, matrix.scales, scales, dst_offset=row * scale_bytes)
            progress(len(part) * (row_bytes + scale_bytes))
            checkpoint.release(name)
        before += rows


def _slices(stack: Stack, rows: int, before: int, at_once: int) -> Iterator[tuple[slice, int]]:
    """Yield the rows of a tensor to be converted at a time, and the row of the stack they go to.

    ``rows`` are those of the tensor for one expert, ``before`` those of tensors before it.
    """
    rows_of_one = stack.extent.rows // stack.experts
    for expert, first in itertools.product(range(stack.experts), range(0, rows, at_once)):
        start = expert * rows
        here = slice(start + first, start + min(first + at_once, rows))
        yield here, expert * rows_of_one + before + first


def read_vector(checkpoint: Checkpoint, name: str, padded: int) -> NDArray[np.float32]:
    """Return a vector (a norm's weights) as float32, padded with zeros."""
    tensor = checkpoint.read(name)
    n = math.prod(tensor.info.shape)
    out = np.zeros(padded, np.float32)
    out[:n] = quants.dequantize(tensor.info.type, tensor.data, n).reshape(-1)
    return out
