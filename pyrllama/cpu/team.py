"""A team of threads: the Python side of ``barrier.py``."""

from __future__ import annotations

import os
import threading
import time
import weakref
from functools import cache
from typing import TYPE_CHECKING

from pyrllama.cpu import compiler
from pyrllama.cpu.cores import performance_cores
from pyrllama.cpu.records import BARRIER_SPINS, IDLE_SPINS, N_THREADS, PHASE, team_words
from pyrllama.errors import BackendError, SettingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.cpu.compiler import Kernel

MAX_THREADS = 256
BYTES_A_THREAD = 2 << 20
"""Weights for which a thread is worth its barriers; below it, meeting costs what it saves."""
LEAST_PATIENCE, MOST_PATIENCE = 30e-6, 200e-6
"""Seconds for which a thread at a barrier looks out for the others before it sleeps."""
BYTES_A_SECOND = 20e9
"""What all threads together may read between two barriers, to guess how far apart those are."""
IDLE_SECONDS = 1e-3
"""For how long a worker looks out for the next job: what choosing a token takes."""
_PROBE_SPINS = 1000


def default_threads() -> int:
    """Return how many threads a large model gets: the performance cores of this process."""
    return min(performance_cores(), MAX_THREADS)


def fitting_threads(weight_bytes: int) -> int:
    """Return how many of those threads a model of this size keeps busy between barriers."""
    return min(default_threads(), max(1, weight_bytes // BYTES_A_THREAD))


def fitting_patience(weight_bytes: int, n_barriers: int) -> float:
    """Return for how many seconds to look out at a barrier of a pass with so many of them.

    To sleep and be woken takes as long as some ten thousand loads; to look out for a thread that
    others keep from its core takes it from them in vain.  With as long a wait as the work
    between two barriers, neither costs more than that work.
    """
    phase = weight_bytes / BYTES_A_SECOND / n_barriers
    return min(max(phase, LEAST_PATIENCE), MOST_PATIENCE)


class Team:
    """The calling thread and ``n_threads - 1`` workers, which run kernels side by side.

    One job at a time; ``run`` may be called from any thread.  After a fork the child gets
    workers of its own when it first runs a job.  The workers of a team that is dropped end.
    """

    def __init__(self, n_threads: int, patience: float = LEAST_PATIENCE) -> None:
        if not 1 <= n_threads <= MAX_THREADS:
            raise SettingError("threads", n_threads, f"a whole number from 1 to {MAX_THREADS}")
        self.n_threads = n_threads
        self._patience = patience
        self._lead, self._serve, self._dismiss = (
            compiler.load(f"barrier.{name}") for name in ("lead", "serve", "dismiss")
        )
        self._lock = threading.Lock()
        self._closed = False
        self._workers: list[threading.Thread] = []
        self._dismissal: weakref.finalize[..., Team]
        self._start()

    @property
    def address(self) -> int:
        """Where the team's words are, for kernels that meet at its barrier."""
        return self._words.ctypes.data

    def run(self, job: Kernel, argument: int) -> None:
        """Run ``job(argument, thread)`` on every thread and return when all are done.

        Raises ``BackendError`` after ``close``.
        """
        with self._lock:
            if self._closed:
                raise BackendError("the threads of this model have ended; load it again")
            if self._pid != os.getpid():
                self._dismissal.detach()
                self._start()
            self._lead.call(self.address, job.address, argument)

    def close(self) -> None:
        """End the workers; the team must not be used any more."""
        with self._lock:
            self._closed = True
            self._dismissal()
            if self._pid == os.getpid():
                for worker in self._workers:
                    worker.join()
            self._workers = []

    def _start(self) -> None:
        self._pid = os.getpid()
        self._words = words = team_words()
        words[N_THREADS // 8] = self.n_threads
        if self.n_threads > 1:
            a_spin = spin_seconds()
            words[BARRIER_SPINS // 8] = self._patience / a_spin
            words[IDLE_SPINS // 8] = IDLE_SECONDS / a_spin
        self._workers = [
            threading.Thread(
                target=_work,
                args=(self._serve, words, number),
                name=f"rllama-{number}",
                daemon=True,
            )
            for number in range(1, self.n_threads)
        ]
        for worker in self._workers:
            worker.start()
        # Neither the workers nor this refer to the team itself, which may thus be dropped.
        self._dismissal = weakref.finalize(self, _dismissed, self._dismiss, words)


def _work(serve: Kernel, words: NDArray[np.int64], number: int) -> None:
    """Serve a team, whose words stay where they are while this refers to them."""
    serve.call(words.ctypes.data, number)


def _dismissed(dismiss: Kernel, words: NDArray[np.int64]) -> None:
    dismiss.call(words.ctypes.data)


@cache
def spin_seconds() -> float:
    """Measure how long a waiting thread takes to look once; CPUs' pauses differ tenfold."""
    spin, words = compiler.load("barrier.spin"), team_words()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        spin.call(words.ctypes.data + PHASE, _PROBE_SPINS)
        seconds.append(time.perf_counter() - start)
    return max(min(seconds), 1e-9) / _PROBE_SPINS
