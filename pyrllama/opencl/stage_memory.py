"""What a run of layers has in a device's memory: weights, the KV cache, and the rows of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.models.rope import ROPE_FACTORS, rope_table
from pyrllama.opencl.choice import choice_bytes
from pyrllama.opencl.device import pyopencl
from pyrllama.opencl.experts import feed_forward_bytes
from pyrllama.opencl.heads import has_extras, head_extras
from pyrllama.opencl.layout import BLOCK, ROW_ALIGN, round_up
from pyrllama.opencl.local_memory import PHASE_MARKS
from pyrllama.opencl.parts import block_bytes, stage_stacks
from pyrllama.opencl.persistent import n_barriers, places
from pyrllama.opencl.tuning import WIDE_TOKENS, norm_stride
from pyrllama.opencl.weights import DeviceMemory, read_vector, upload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.parts import Part, Sizes
    from pyrllama.opencl.tuning import Tuning
    from pyrllama.opencl.weights import Matrix, Stack
    from pyrllama.tensors import TensorType

GRID_WORDS = 4
"""Of a barrier across the grid; see ``kernels/primitives.cl``."""


class StageMemory:
    """The matrices and constants of a stage, and beside them the buffers of its steps."""

    def __init__(
        self,
        device: Device,
        context: Any,
        queue: Any,
        checkpoint: Checkpoint,
        part: Part,
        sizes: Sizes,
        *,
        wanted: TensorType | None,
        progress: Callable[[int], None],
    ) -> None:
        self._device, self._context, self._queue = device, context, queue
        self._config, self._part, self._sizes = checkpoint.config, part, sizes
        groups = stage_stacks(checkpoint, part, wanted)
        self.matrices = self._load(checkpoint, groups, progress)
        """By group (``"0.qkv"``, ``"output"``), those of one type joined."""
        self._constants = {
            "norms": self._filled(self._norms(checkpoint)),
            "rope": self._filled(self._rope(checkpoint)),
        }
        if has_extras(self._config):
            extras = head_extras(checkpoint, part.layers)
            self._constants["head_extras"] = self._filled(extras)
        self._buffers: dict[str, Any] = {}

    # --- weights ------------------------------------------------------------------------------

    def _load(
        self,
        checkpoint: Checkpoint,
        groups: Mapping[str, list[Stack]],
        progress: Callable[[int], None],
    ) -> dict[str, list[Matrix]]:
        """Place every matrix in the order of a step, then fill them."""
        ordered: dict[tuple[str, ...], Stack] = {}
        for group in groups.values():
            ordered.update((stack.names, stack) for stack in group)
        self._weights = DeviceMemory(self._device, self._context, ordered.values())
        placed: dict[tuple[str, ...], Matrix] = {}
        for i, (names, stack) in enumerate(ordered.items()):
            placed[names] = self._weights.place(i, stack.extent)
            upload(self._queue, placed[names], stack, checkpoint, progress)
        self.weight_bytes = sum(stack.extent.n_bytes for stack in ordered.values())
        return {name: [placed[s.names] for s in group] for name, group in groups.items()}

    @property
    def weight_buffers(self) -> list[Any]:
        """The large buffers that hold the matrices."""
        return self._weights.buffers

    @property
    def kinds(self) -> set[TensorType]:
        """The types in which the matrices are held."""
        return {m.extent.kind for parts in self.matrices.values() for m in parts}

    def _rope(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        factors = None
        if ROPE_FACTORS in checkpoint.tensors:
            factors = read_vector(checkpoint, ROPE_FACTORS, self._config.head_dim // 2)
        return rope_table(self._config, self._sizes.max_seq_len, factors)

    def _norms(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        """Return the weights of all norms: two a layer, and the last one."""
        names = [
            f"blk.{i}.{n}.weight" for i in self._part.layers for n in ("attn_norm", "ffn_norm")
        ]
        names += ["output_norm.weight"] if self._part.ends else []
        stride = norm_stride(self._config)
        return np.stack([read_vector(checkpoint, name, stride) for name in names])

    def norm(self, index: int) -> Any:
        """Return the weights of a norm: ``2 * layer`` or the one after, or the last."""
        n_bytes = 4 * norm_stride(self._config)
        return self._constants["norms"].get_sub_region(index * n_bytes, n_bytes)

    # --- the buffers of a step ----------------------------------------------------------------

    def allocate(self, tuning: Tuning, batch_bytes: int, *, persists: bool) -> None:
        """Make the buffers of a step, those before it freed; ``Steps`` says who uses which.

        ``batch_bytes`` are those of the words of a batch.
        """
        self._buffers.clear()
        config, sizes, part = self._config, self._sizes, self._part
        rows = sizes.max_tokens
        width = {
            "x": config.dim,
            "qkv": config.q_dim + 2 * config.kv_dim,
            "parts": round_up(config.q_dim, BLOCK) * tuning.splits,
            "shares": 2 * config.n_heads * tuning.splits,
        }
        buffers = {name: self._buffer(4 * rows * round_up(n, BLOCK)) for name, n in width.items()}
        tiled = 4 * round_up(rows, WIDE_TOKENS)  # bytes of a column of what products read
        buffers["rows"] = self._buffer(tiled * round_up(max(config.dim, config.q_dim), ROW_ALIGN))
        for name, n_bytes in feed_forward_bytes(config, rows).items():
            buffers[name] = self._buffer(n_bytes)
        # One number behind the logits tells whether a group gave up waiting.
        buffers["logits"] = self._buffer(4 * (rows * config.vocab_size * part.ends + 1))
        choice = choice_bytes(config, tuning)
        buffers |= {name: self._buffer(n_bytes) for name, n_bytes in choice.items()}
        buffers["words"] = self._buffer(4 * GRID_WORDS)
        if tuning.phase_times:
            n_times = (PHASE_MARKS + 2) * tuning.groups * (n_barriers(part) + 1)
            buffers["times"] = self._buffer(4 * n_times)
        if persists:
            buffers["places"] = self._filled(places(self.matrices, part))
        buffers["cache"] = self._buffer(sizes.n_blocks * self.block_bytes)
        buffers["batch"] = self._buffer(batch_bytes)
        self._buffers = buffers

    def buffer(self, name: str) -> Any:
        """Return a buffer of a step, or one of constants, by name."""
        return self._constants[name] if name in self._constants else self._buffers[name]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of this stage's part of the KV cache."""
        return block_bytes(self._config, len(self._part.layers), self._sizes.kv_type)

    def _filled(self, values: NDArray[Any]) -> Any:
        flags = pyopencl().mem_flags
        return pyopencl().Buffer(
            self._context, flags.READ_ONLY | flags.COPY_HOST_PTR, hostbuf=values
        )

    def _buffer(self, n_bytes: int) -> Any:
        """Return zeroed memory: what kernels never write are the zeros of a padded row."""
        cl = pyopencl()
        n_bytes = round_up(n_bytes, 16)
        buffer = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, n_bytes)
        cl.enqueue_fill_buffer(self._queue, buffer, np.zeros(4, np.uint32), 0, n_bytes)
        return buffer

    def close(self) -> None:
        """Free the device's memory now, not when Python notices."""
        buffers = [*self._buffers.values(), *self._constants.values(), *self._weights.buffers]
        self.matrices.clear()
        self._buffers.clear()
        self._constants.clear()
        self._weights.buffers.clear()
        for buffer in buffers:
            buffer.release()
