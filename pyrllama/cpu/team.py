"""A team of threads: the Python side of ``barrier.py``."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pyrllama.cpu import compiler
from pyrllama.cpu.records import ASLEEP, JOB, N_THREADS, STATE, WAKE, WORKERS, team_words
from pyrllama.errors import BackendError, SettingError

if TYPE_CHECKING:
    from pyrllama.cpu.compiler import Kernel

MAX_THREADS = 256
BYTES_A_THREAD = 2 << 20
"""Weights for which a thread is worth its barriers; below it, meeting costs what it saves."""


def default_threads() -> int:
    """Return how many threads this process may run at once: its affinity and cgroup limit."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to read
        allowed = os.cpu_count() or 1
    return max(1, min(allowed, _cgroup_limit() or allowed, MAX_THREADS))


def fitting_threads(weight_bytes: int) -> int:
    """Return how many of those threads a model of this size keeps busy between barriers."""
    return min(default_threads(), max(1, weight_bytes // BYTES_A_THREAD))


def _cgroup_limit() -> int | None:
    """Return the whole cores of this process's cgroup quota (version 2), None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


class Team:
    """The calling thread and ``n_threads - 1`` workers, which run kernels side by side.

    One job at a time; ``run`` may be called from any thread.  After a fork the child gets
    workers of its own when it first runs a job.
    """

    def __init__(self, n_threads: int) -> None:
        if not 1 <= n_threads <= MAX_THREADS:
            raise SettingError("threads", n_threads, f"a whole number from 1 to {MAX_THREADS}")
        self.n_threads = n_threads
        self._announce, self._lead, self._serve = (
            compiler.load(f"barrier.{name}") for name in ("announce", "lead", "serve")
        )
        self._lock = threading.Lock()
        self._workers: list[threading.Thread] = []
        self._closed = False
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
                self._start()
            self._publish(job.address, argument)
            self._lead.call(self.address)

    def close(self) -> None:
        """End the workers; the team must not be used any more."""
        with self._lock:
            self._closed = True
            if self._pid == os.getpid() and self._workers:
                self._publish(0, 0)
                for worker in self._workers:
                    worker.join()
                self._workers = []

    def _start(self) -> None:
        self._pid = os.getpid()
        self._words = team_words(self.n_threads)
        self._set(0, N_THREADS, self.n_threads)
        self._gates = [threading.Lock() for _ in range(self.n_threads)]
        self._workers = []
        for number in range(1, self.n_threads):
            self._gates[number].acquire()
            self._set(number, STATE, ASLEEP)
            worker = threading.Thread(
                target=self._work, args=(number,), name=f"rllama-{number}", daemon=True
            )
            self._workers.append(worker)
            worker.start()

    def _work(self, number: int) -> None:
        # The words are held here too: a team that is dropped must not pull them away.
        words, gate = self._words, self._gates[number]
        base = words.ctypes.data
        while True:
            gate.acquire()
            self._serve.call(base, number)
            if words[JOB // 8] == 0:
                return

    def _publish(self, address: int, argument: int) -> None:
        self._announce.call(self.address, address, argument)
        for number in range(1, self.n_threads):
            word = (number * WORKERS + WAKE) // 8
            if self._words[word]:
                self._words[word] = 0
                self._gates[number].release()

    def _set(self, thread: int, field: int, value: int) -> None:
        self._words[(thread * WORKERS + field) // 8] = value
