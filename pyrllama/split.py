"""A model whose first layers run on the CPU and whose last ones on OpenCL devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.block_bytes import block_memory
from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.block_bytes import BlockMemory
    from pyrllama.core import Batch, LogitRow
    from pyrllama.cpu import CpuModel
    from pyrllama.opencl import OpenClModel


class SplitModel:
    """Two backends in one step; see ``backend.Model``.

    The CPU turns tokens into hidden states, the devices turn those into logits.  Each has the
    part of the KV cache that belongs to its layers, under the same block numbers.
    """

    def __init__(self, cpu: CpuModel, opencl: OpenClModel) -> None:
        self._cpu, self._opencl = cpu, opencl
        self.config = cpu.config
        self.n_blocks = min(cpu.n_blocks, opencl.n_blocks)
        self.max_batch_tokens = min(cpu.max_batch_tokens, opencl.max_batch_tokens)
        self.weight_bytes = cpu.weight_bytes + opencl.weight_bytes
        self.decode_bytes = cpu.decode_bytes + opencl.decode_bytes
        # Each part keeps its own bytes of a block; the first ones are the CPU's.
        self._cpu_block_bytes = cpu.kv_bytes_per_token * BLOCK_TOKENS
        self.kv_bytes_per_token = cpu.kv_bytes_per_token + opencl.kv_bytes_per_token

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Run a batch and return the logits that it asks for, ``(n_outputs, vocab_size)``."""
        return self._opencl.forward(batch, self._cpu.hidden(batch))

    def top_logits(self, batch: Batch, k: int) -> Sequence[LogitRow]:
        """Run a batch and return the greatest logits; see ``output_rows.TopLogitsModel``."""
        return self._opencl.top_logits(batch, k, self._cpu.hidden(batch))

    @property
    def block_format(self) -> str | None:
        """Both formats, the CPU's first; None while the devices' blocks cannot be read."""
        devices = block_memory(self._opencl)
        return f"{self._cpu.block_format} + {devices.block_format}" if devices else None

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of a block's keys and values, those of the CPU's layers first."""
        return np.concatenate([self._cpu.read_block(block), self._devices().read_block(block)])

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill both parts of a block with what ``read_block`` gave."""
        self._devices().write_block(block, data[self._cpu_block_bytes :])
        self._cpu.write_block(block, data[: self._cpu_block_bytes])

    def _devices(self) -> BlockMemory:
        devices = block_memory(self._opencl)
        if devices is None:
            raise DeviceError("the blocks of the KV cache on these devices cannot be read")
        return devices

    def close(self) -> None:
        """Free both."""
        self._cpu.close()
        self._opencl.close()
