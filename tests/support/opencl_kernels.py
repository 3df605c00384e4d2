"""Single kernels of a device, run on matrices of random bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from support.opencl_models import tuning_for
from support.tiny_models import tiny_config

from pyrllama.core import TensorType
from pyrllama.opencl.batch import HEADER, N_TOKENS
from pyrllama.opencl.device import pyopencl
from pyrllama.opencl.launches import TILE_GROUP, TILE_ROWS, TILE_TOKENS
from pyrllama.opencl.layout import ROW_ALIGN, extent_of, pack, round_up
from pyrllama.opencl.program import OPTIONS, UNOPTIMISED, Program, model_source
from pyrllama.opencl.tuning import defines, local_memory

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from pyrllama.opencl.device import Device
    from pyrllama.opencl.program import Launch

    Floats = NDArray[np.float32]

MAX_TOKENS = 96


class Kernels:
    """A program with the kernels of some types, for matrices of up to ``cols`` columns.

    ``segment_blocks`` are the blocks of activations that local memory holds at a time, by default
    a whole row.
    """

    def __init__(
        self,
        device: Device,
        kinds: Collection[TensorType],
        cols: int,
        *,
        segment_blocks: int | None = None,
    ) -> None:
        config = tiny_config(dim=cols)
        self._tuning = tuning_for(device, config)
        self.reads_halves = self._tuning.tensor_cores
        memory = local_memory(device, config, self._tuning)
        words = defines(
            self._tuning,
            config,
            memory,
            kv_type=TensorType.F16,
            max_tokens=MAX_TOKENS,
            max_seq_len=MAX_TOKENS,
        )
        words["SEGMENT_BLOCKS"] = segment_blocks or words["SEGMENT_BLOCKS"]
        cl = pyopencl()
        context = cl.Context([device.handle])
        self._queue = cl.CommandQueue(context)
        options = OPTIONS if self._tuning.optimise else (*OPTIONS, UNOPTIMISED)
        self._program = Program(device, context, model_source(words, kinds), options)

    def embedded(self, kind: TensorType, rows: NDArray[np.uint8], cols: int) -> Floats:
        """Return stored rows as the embedding of tokens gives them, ``(rows, cols)``."""
        n, name = len(rows), f"embed_{kind.name.lower()}"
        units, scales, _, n_units = self._matrix(kind, rows, cols)
        batch = self._buffer(np.r_[np.zeros(HEADER), np.arange(n)].astype(np.int32))
        return self._run(name, n, (units, scales, n_units, batch), (n, cols), (np.int32(cols),))

    def product(self, kind: TensorType, rows: NDArray[np.uint8], x: Floats) -> Floats:
        """Return the product with one row of activations, ``(rows,)``, as decoding makes it."""
        matrix = self._matrix(kind, rows, x.size)
        arguments = (*matrix, self._buffer(x))
        return self._run(f"add_product_{kind.name.lower()}", 3, arguments, (len(rows),))

    def tiles(self, kind: TensorType, rows: NDArray[np.uint8], x: Floats) -> Floats:
        """Return the product with rows of activations, ``(tokens, rows)``, as prefill makes it."""
        matrix = self._matrix(kind, rows, x.shape[1])
        batch = np.zeros(HEADER, np.int32)
        batch[N_TOKENS] = len(x)
        tuning = self._tuning
        group, tile_rows, tokens = TILE_GROUP, TILE_ROWS, TILE_TOKENS
        if tuning.tensor_cores:
            group, tile_rows, tokens = tuning.tensor_group, tuning.tensor_rows, tuning.tensor_tokens
        padded = np.pad(x, ((0, 0), (0, -x.shape[1] % ROW_ALIGN)))
        stored = self._buffer(padded.astype(np.float16) if self.reads_halves else padded)
        groups = -(-len(rows) // tile_rows) * -(-len(x) // tokens)
        return self._run(
            f"tile_product_{kind.name.lower()}",
            groups,
            (*matrix, stored, self._buffer(batch), np.int32(N_TOKENS)),
            (len(x), len(rows)),
            (np.int32(0), np.int32(len(rows)), np.int32(0)),
            group=group,
        )

    def _run(
        self,
        name: str,
        groups: int,
        before: tuple[Any, ...],
        shape: tuple[int, ...],
        after: tuple[Any, ...] = (),
        *,
        group: int | None = None,
    ) -> Floats:
        """Run a kernel whose output, zeros at first, stands between its other arguments."""
        out = np.zeros(shape, np.float32)
        buffer = self._buffer(out)
        size = group or self._tuning.group
        launch: Launch = self._program.launch(name, groups, size, *before, buffer, *after)
        launch.enqueue(self._queue)
        pyopencl().enqueue_copy(self._queue, out, buffer)
        return out

    def _matrix(self, kind: TensorType, rows: NDArray[np.uint8], cols: int) -> tuple[Any, ...]:
        units, scales = pack(kind, rows, cols)
        extent = extent_of(kind, (len(rows), round_up(cols, 32)))
        assert (units.nbytes, scales.nbytes) == (extent.unit_bytes, extent.scale_bytes)
        sizes = np.int32(len(rows)), np.int32(extent.n_units)
        return self._buffer(units), self._buffer(scales), *sizes

    def _buffer(self, values: NDArray[Any]) -> Any:
        cl = pyopencl()
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        return cl.Buffer(self._program.context, flags, hostbuf=np.ascontiguousarray(values))
