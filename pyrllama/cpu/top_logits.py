"""The greatest logits of a row, found by its runs: most of a vocabulary is never looked at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import TopLogits
from pyrllama.cpu.records import ROW_SUMS_BYTES, RUN_LOGITS
from pyrllama.cpu.scratch import aligned_zeros, round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import LogitRow


class LogitRuns:
    """What ``logit_runs.py`` tells of rows of logits and of the runs that they are made of."""

    def __init__(self, rows: int, vocab_size: int) -> None:
        self._n_runs = -(-vocab_size // RUN_LOGITS)
        self._greatest, self._masses = aligned_zeros(
            (2, rows, round_up(self._n_runs, 16)), np.float32
        )
        self._sums = aligned_zeros((rows, ROW_SUMS_BYTES // 4), np.float32)
        self._first_runs = self._sums.view(np.int32)[:, 1]

    @property
    def fields(self) -> dict[str, int]:
        """The fields of a STEP record that tell where they are."""
        return {
            "greatest": self._greatest.ctypes.data,
            "masses": self._masses.ctypes.data,
            "runs_stride": self._greatest.strides[0],
            "row_sums": self._sums.ctypes.data,
        }

    def top(self, row: int, logits: NDArray[np.float32], k: int) -> LogitRow:
        """Return the ``k`` greatest of a row, or a copy of it where some are not finite."""
        mass = float(self._sums[row, 0])
        if not math.isfinite(mass):
            return logits.copy()
        if k == 1:
            begin = int(self._first_runs[row]) * RUN_LOGITS
            token = begin + int(logits[begin : begin + RUN_LOGITS].argmax())
            ids = np.array([token])
        else:
            ids = self._first(row, logits, k)
        return TopLogits(logits[ids], ids, mass)

    def _first(self, row: int, logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the tokens of the ``k`` greatest.

        Of the greatest ones of all runs, ``k`` reach the one of rank ``k``: no smaller logit is
        among those that are wanted.
        """
        greatest = self._greatest[row, : self._n_runs]
        bound = np.partition(greatest, -k)[-k] if k <= greatest.size else -np.inf
        begins = np.flatnonzero(greatest >= bound) * RUN_LOGITS
        near = (begins[:, None] + np.arange(RUN_LOGITS)).ravel()
        near = near[: np.searchsorted(near, logits.size)]
        near = near[logits[near] >= bound]
        return np.asarray(near[np.lexsort((near, -logits[near]))[:k]])
