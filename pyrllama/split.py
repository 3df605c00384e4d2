"""A model whose first layers run on the CPU and whose last ones on OpenCL devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.core import Batch
    from pyrllama.cpu import CpuModel
    from pyrllama.opencl import OpenClModel


class SplitModel:
    """Two backends in one step; see ``engine.Model``.

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
        self.kv_bytes_per_token = cpu.kv_bytes_per_token + opencl.kv_bytes_per_token

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Run a batch and return the logits that it asks for, ``(n_outputs, vocab_size)``."""
        return self._opencl.forward(batch, self._cpu.hidden(batch))

    def close(self) -> None:
        """Free both."""
        self._cpu.close()
        self._opencl.close()
