"""The greatest logits of a row, found by its runs: most of a vocabulary is never looked at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import TopLogits
from pyrllama.cpu.records import RUN_LOGITS
from pyrllama.cpu.scratch import aligned_zeros, round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import LogitRow


class LogitRuns:
    """The runs of rows of logits, which ``logit_runs.py`` sums up."""

    def __init__(self, rows: int, vocab_size: int) -> None:
        self._n_runs = -(-vocab_size // RUN_LOGITS)
        self._greatest, self._masses = aligned_zeros(
            (2, rows, round_up(self._n_runs, 16)), np.float32
        )

    @property
    def fields(self) -> dict[str, int]:
        """The fields of a STEP record that tell where they are."""
        return {
            "greatest": self._greatest.ctypes.data,
            "masses": self._masses.ctypes.data,
            "runs_stride": self._greatest.strides[0],
        }

    def top(self, row: int, logits: NDArray[np.float32], k: int) -> LogitRow:
        """Return the ``k`` greatest of a row, or a copy of it where some are not finite.

        Of the greatest ones of all runs, ``k`` reach the one of rank ``k``: no smaller logit is
        among those that are wanted.
        """
        greatest, masses = self._greatest[row, : self._n_runs], self._masses[row, : self._n_runs]
        first = int(greatest.argmax())
        peak, mass = greatest[first], math.nan
        if math.isfinite(peak):
            mass = float(np.einsum("i,i->", masses, np.exp(greatest - peak)))
        if not math.isfinite(mass):
            return logits.copy()
        if k == 1:
            begin = first * RUN_LOGITS
            token = begin + int(logits[begin : begin + RUN_LOGITS].argmax())
            return TopLogits(logits[token : token + 1].copy(), np.array([token]), mass)
        bound = np.partition(greatest, -k)[-k] if k <= greatest.size else -np.inf
        begins = np.flatnonzero(greatest >= bound) * RUN_LOGITS
        near = (begins[:, None] + np.arange(RUN_LOGITS)).ravel()
        near = near[: np.searchsorted(near, logits.size)]
        near = near[logits[near] >= bound]
        ids = near[np.lexsort((near, -logits[near]))[:k]]
        return TopLogits(logits[ids], ids, mass)
