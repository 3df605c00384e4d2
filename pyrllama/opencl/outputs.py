"""What a step leaves on its device, as the host takes it: states, logits, or the greatest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.errors import DeviceError
from pyrllama.opencl.choice import GAVE_UP, MOST_ROWS, TOP_WORDS, top_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import TopLogits
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.transfers import Transfers

PINNED_ROWS = 8
"""Rows of logits that go through pinned memory; more take long anyway, and much of it."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The greatest logits of a step, on their way to the host."""

    words: NDArray[np.uint32]
    """``(rows, TOP_WORDS)``."""
    event: Any
    slot: int
    """The row of the device's buffer that the first of them is."""


class Outputs:
    """Reads the results of a stage's steps, waiting once for each step.

    Every method raises ``DeviceError`` where ``single``, a step of one kernel, gave up waiting.
    """

    def __init__(self, stage: Stage, transfers: Transfers) -> None:
        self._stage, self._transfers = stage, transfers
        self._vocab_size = stage.config.vocab_size if stage.part.ends else 0
        self._rows = transfers.pinned((PINNED_ROWS * self._vocab_size + 1,), np.float32)
        # Two, as a step may be under way while the host reads what the one before gave.
        self._tops = [transfers.pinned((MOST_ROWS, TOP_WORDS), np.uint32) for _ in range(2)]

    def states(self, out: NDArray[Any], *, single: bool) -> NDArray[np.float32]:
        """Fill pinned memory, ``(n_tokens, padded dim)``, and return the states from it."""
        self._transfers.fetch(out, self._stage.buffer("x"), wait=not single)
        if single:
            self._check(self._transfers.fetch(self._rows[:1], self._stage.buffer("logits"))[0])
        return out[:, : self._stage.config.dim].copy()

    def logits(self, n_rows: int, *, single: bool) -> NDArray[np.float32]:
        """Return rows of logits, ``(n_rows, vocab)``."""
        vocab_size, buffer = self._vocab_size, self._stage.buffer("logits")
        values: NDArray[np.float32] = np.empty(0, np.float32)
        if n_rows <= PINNED_ROWS:
            values = self._rows[: n_rows * vocab_size + single]
        else:
            values = np.empty(n_rows * vocab_size, np.float32)
        if values.size:
            self._transfers.fetch(values, buffer, 0 if n_rows else 4 * vocab_size)
        else:
            self._transfers.wait()
        if single:
            self._check(values[-1])
        rows = values[: n_rows * vocab_size].reshape(n_rows, vocab_size)
        return rows.copy() if n_rows <= PINNED_ROWS else rows

    def ask_top(self, n_rows: int, step: Any, slot: int = 0) -> Chosen:
        """Ask for the greatest logits of a step that was just enqueued, given its event."""
        self._tops.reverse()
        words = self._tops[0][:n_rows]
        offset = slot * words.itemsize * TOP_WORDS
        event = self._transfers.begin_fetch(words, self._stage.buffer("top"), offset, step)
        return Chosen(words, event, slot)

    def top(self, chosen: Chosen, k: int) -> list[TopLogits | None]:
        """Return the greatest logits of each row; None where the device cannot tell them."""
        self._transfers.wait_for(chosen.event)
        self._check(chosen.words[0, GAVE_UP])
        return [top_of(words, k) for words in chosen.words]

    def row(self, index: int) -> NDArray[np.float32]:
        """Return all logits of a row of the last step that was enqueued."""
        row = np.empty(self._vocab_size, np.float32)
        return self._transfers.fetch(row, self._stage.buffer("logits"), index * row.nbytes)

    def _check(self, gave_up: float) -> None:
        if gave_up:
            tuning = self._stage.tuning
            raise DeviceError(
                f"OpenCL device {self._stage.device} does not run {tuning.groups} groups of "
                f"{tuning.group} work-items at once, as it seemed to do; end other programs "
                f"that use it, or run without it: --backend cpu"
            )
