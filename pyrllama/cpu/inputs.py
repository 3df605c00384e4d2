"""What a batch brings to a pass: tokens, positions, block tables, and whose logits are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.batch_limits import BatchLimits
    from pyrllama.core import Batch


class Inputs:
    """Where the kernel reads a batch, of which every size is checked before."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._tokens, self._positions, self._tables, self._outputs = np.zeros(
            (4, limits.max_tokens), np.int64
        )

    @property
    def fields(self) -> dict[str, int]:
        """The fields of a STEP record that tell where they are."""
        return {
            "tokens": self._tokens.ctypes.data,
            "positions": self._positions.ctypes.data,
            "tables": self._tables.ctypes.data,
            "outputs": self._outputs.ctypes.data,
        }

    def place(self, batch: Batch) -> list[NDArray[np.int64]]:
        """Write a batch; return its block tables, which the kernel reads where they are.

        Raises ``BackendError`` for what would lead a kernel out of its memory.
        """
        self._limits.check(batch)
        tables, t, o = [], 0, 0
        for chunk in batch.chunks:
            n, end = len(chunk.tokens), chunk.start + len(chunk.tokens)
            table = np.array(chunk.blocks, np.int64)
            self._tokens[t : t + n] = chunk.tokens
            self._positions[t : t + n] = range(chunk.start, end)
            self._tables[t : t + n] = table.ctypes.data
            outputs = chunk.outputs
            self._outputs[o : o + outputs] = range(t + n - outputs, t + n)
            tables.append(table)
            t, o = t + n, o + outputs
        return tables
