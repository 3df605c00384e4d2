"""Single kernels of a device, run on arrays, and on matrices of any stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from support.opencl_models import tuning_for

from pyrllama.opencl.batch import HEADER, N_TOKENS
from pyrllama.opencl.defines import defines
from pyrllama.opencl.device import pyopencl
from pyrllama.opencl.launches import TILE_GROUP, TILE_ROWS, TILE_TOKENS
from pyrllama.opencl.layout import ROW_ALIGN, extent_of, pack, round_up
from pyrllama.opencl.local_memory import local_memory
from pyrllama.opencl.program import OPTIONS, UNOPTIMISED, Program, model_source
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import DTypeLike, NDArray

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device

    Floats = NDArray[np.float32]

MAX_TOKENS = 96
"""Of a batch and of a sequence, as in the models of ``support.opencl_models``."""


class Kernels:
    """The program of a model whose matrices are of some types, by default of none.

    It is the one that ``opencl_model`` builds, so that drivers which keep what they compile, as
    PoCL does, compile each kernel once.  ``changes`` are other sizes of a ``Tuning``;
    ``segment_blocks`` are the blocks of activations that local memory holds at a time, by default
    a whole row.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        kinds: Collection[TensorType] = (),
        *,
        kv_type: TensorType = TensorType.F16,
        segment_blocks: int | None = None,
        **changes: Any,
    ) -> None:
        self.config = config
        kind = next(iter(kinds), None)
        self.tuning = tuning_for(device, config, kind, **changes)
        memory = local_memory(device, config, self.tuning)
        words = defines(
            self.tuning,
            config,
            memory,
            kv_type=kv_type,
            max_tokens=MAX_TOKENS,
            max_seq_len=MAX_TOKENS,
        )
        words["SEGMENT_BLOCKS"] = segment_blocks or words["SEGMENT_BLOCKS"]
        cl = pyopencl()
        context = cl.Context([device.handle])
        self._queue = cl.CommandQueue(context)
        options = OPTIONS if self.tuning.optimise else (*OPTIONS, UNOPTIMISED)
        self._program = Program(device, context, model_source(words, kinds), options)

    def run(self, name: str, groups: int, *arguments: Any, group: int | None = None) -> None:
        """Run a kernel: its arguments are buffers, arrays that it only reads, and numbers."""
        given = [
            self.buffer(argument) if isinstance(argument, np.ndarray) else argument
            for argument in arguments
        ]
        given = [np.int32(value) if isinstance(value, int) else value for value in given]
        given = [np.float32(value) if isinstance(value, float) else value for value in given]
        launch = self._program.launch(name, groups, group or self.tuning.group, *given)
        launch.enqueue(self._queue)

    def buffer(self, values: NDArray[Any]) -> Any:
        """Return a copy of an array on the device."""
        cl = pyopencl()
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        return cl.Buffer(self._program.context, flags, hostbuf=np.ascontiguousarray(values))

    def zeros(self, *shape: int) -> Any:
        """Return zeroed float32 on the device."""
        return self.buffer(np.zeros(shape, np.float32))

    def read(self, buffer: Any, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Any:
        """Return what a buffer holds."""
        out = np.empty(shape, dtype)
        pyopencl().enqueue_copy(self._queue, out, buffer)
        return out


class MatrixKernels(Kernels):
    """Kernels that read stored matrices."""

    @property
    def reads_halves(self) -> bool:
        """Whether products of a batch read their activations as float16."""
        return self.tuning.tensor_cores

    def embedded(self, kind: TensorType, rows: NDArray[np.uint8], cols: int) -> Floats:
        """Return stored rows as the embedding of tokens gives them, ``(rows, padded cols)``."""
        n, stride = len(rows), round_up(cols, 32)
        units, scales, _, n_units = self.matrix(kind, rows, cols)
        batch = np.r_[np.zeros(HEADER), np.arange(n)].astype(np.int32)
        out = self.zeros(n, stride)
        self.run(f"embed_{kind.name.lower()}", n, units, scales, n_units, batch, out, stride)
        return self.read(out, (n, stride))  # type: ignore[no-any-return]

    def product(
        self, name: str, kind: TensorType, rows: NDArray[np.uint8], cols: int, *arguments: Any
    ) -> Floats:
        """Run a product of decoding, whose output comes last and is zeros at first: ``(rows,)``."""
        out = self.zeros(len(rows))
        last = (0,) if name == "norm_product" else ()
        matrix = self.matrix(kind, rows, cols)
        self.run(f"{name}_{kind.name.lower()}", 3, *matrix, *arguments, out, *last)
        return self.read(out, (len(rows),))  # type: ignore[no-any-return]

    def tiles(self, kind: TensorType, rows: NDArray[np.uint8], x: Floats) -> Floats:
        """Return the product with rows of activations, ``(tokens, rows)``, as prefill makes it."""
        batch = np.zeros(HEADER, np.int32)
        batch[N_TOKENS] = len(x)
        tuning = self.tuning
        group, tile_rows, tokens = TILE_GROUP, TILE_ROWS, TILE_TOKENS
        halves = self.reads_halves and kind is not TensorType.F32
        if halves:
            group, tile_rows, tokens = tuning.tensor_group, tuning.tensor_rows, tuning.tensor_tokens
        padded = np.pad(x, ((0, 0), (0, -x.shape[1] % ROW_ALIGN)))
        out = self.zeros(len(x), len(rows))
        self.run(
            f"tile_product_{kind.name.lower()}",
            -(-len(rows) // tile_rows) * -(-len(x) // tokens),
            *self.matrix(kind, rows, x.shape[1]),
            padded.astype(np.float16) if halves else padded,
            batch,
            *(N_TOKENS, out, 0, len(rows), 0),
            group=group,
        )
        return self.read(out, (len(x), len(rows)))  # type: ignore[no-any-return]

    def matrix(self, kind: TensorType, rows: NDArray[np.uint8], cols: int) -> tuple[Any, ...]:
        """Return stored rows as the arguments that stand for a matrix."""
        units, scales = pack(kind, rows, cols)
        extent = extent_of(kind, (len(rows), cols))
        assert (units.nbytes, scales.nbytes) == (extent.unit_bytes, extent.scale_bytes)
        stored = self.buffer(scales) if scales.size else None
        return self.buffer(units), stored, len(rows), extent.n_units
