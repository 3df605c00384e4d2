"""What a batch brings to a pass: tokens, positions, block tables, and whose logits are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pyrllama.batch_limits import BatchLimits
    from pyrllama.core import Batch


class Inputs:
    """Where the kernel reads a batch, of which every size is checked before."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._tokens, self._positions, self._tables, self._outputs = np.zeros(
            (4, limits.max_tokens), np.int64
        )
        # The chunks' tables of blocks, one behind the other; given real pages as far as used.
        self._blocks = np.zeros(limits.max_tokens * limits.n_blocks, np.int64)
        self._blocks_address = self._blocks.ctypes.data

    @property
    def fields(self) -> dict[str, int]:
        """The fields of a STEP record that tell where they are."""
        return {
            "tokens": self._tokens.ctypes.data,
            "positions": self._positions.ctypes.data,
            "tables": self._tables.ctypes.data,
            "outputs": self._outputs.ctypes.data,
        }

    def place(self, batch: Batch) -> None:
        """Write a batch over the one before.

        Raises ``BackendError`` for what would lead a kernel out of its memory.
        """
        self._limits.check(batch)
        t = o = b = 0
        for chunk in batch.chunks:
            n, n_blocks, outputs = len(chunk.tokens), len(chunk.blocks), chunk.outputs
            self._tokens[t : t + n] = chunk.tokens
            self._positions[t : t + n] = range(chunk.start, chunk.start + n)
            self._tables[t : t + n] = self._blocks_address + self._blocks.itemsize * b
            self._blocks[b : b + n_blocks] = chunk.blocks
            self._outputs[o : o + outputs] = range(t + n - outputs, t + n)
            t, o, b = t + n, o + outputs, b + n_blocks
