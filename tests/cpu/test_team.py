"""Teams of threads: every thread works, idle ones sleep, and nothing hangs in the end."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.kernels import each_isa, use_isa

from pyrllama.cpu import compiler
from pyrllama.cpu import team as team_module
from pyrllama.cpu.records import READING, Records
from pyrllama.cpu.team import (
    MAX_THREADS,
    Team,
    default_threads,
    fitting_patience,
    fitting_threads,
    spin_seconds,
)
from pyrllama.errors import RllamaError, SettingError

if TYPE_CHECKING:
    from pyrllama.cpu.target import Isa

PART_BYTES = 256
"""What a thread reads in one turn of the kernel's loop."""
PART_WORDS = PART_BYTES // 4
DEADLINE = 20.0
"""Seconds after which something hangs; everything here takes a fraction of one."""


class Readers:
    """Jobs whose every thread leaves a mark: it reads its part and stores what it found.

    A part is the OR of its four cache lines, which the kernel stores in the first of them.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.parts = np.zeros((n_threads, PART_WORDS), np.int32)
        self._record = Records(READING)
        self._record.set(data=self.parts.ctypes.data, part_bytes=PART_BYTES, ahead=0)
        self._job = compiler.load("reading.one_stream")

    def run(self, team: Team, number: int) -> None:
        """Run a job and check that each thread found its own number."""
        marks = number * self.n_threads + np.arange(1, self.n_threads + 1)
        self.parts[...] = 0
        self.parts[:, -1] = marks
        team.run(self._job, self._record.address)
        np.testing.assert_array_equal(self.parts[:, 15], marks)


def cpu_seconds(thread: threading.Thread) -> float:
    """Return the CPU time that a thread has used so far."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def work_alone(seconds: float) -> None:
    """Keep the calling thread busy for so much CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def fall_asleep(threads: list[threading.Thread]) -> None:
    """Wait until these threads use no CPU time while this one works; fail if they never stop."""
    for _ in range(100):
        before = [cpu_seconds(thread) for thread in threads]
        work_alone(0.02)
        if [cpu_seconds(thread) for thread in threads] == before:
            return
    pytest.fail("a thread spins without work")


def run_python(script: str) -> str:
    """Run a script in a process of its own, which must end; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- jobs -------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("n_threads", range(1, 9))
def test_a_job_runs_on_every_thread(
    isa: Isa, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_isa(monkeypatch, isa)
    team, readers = Team(n_threads), Readers(n_threads)
    assert team.n_threads == n_threads
    for number in range(50):
        readers.run(team, number)
    team.close()


def test_thousands_of_small_jobs() -> None:
    team, readers = Team(3), Readers(3)
    for number in range(3000):
        readers.run(team, number)
    team.close()


def test_jobs_after_the_workers_fell_asleep() -> None:
    team, readers = Team(4), Readers(4)
    for number in range(5):
        readers.run(team, number)
        fall_asleep(workers())
    team.close()


def test_jobs_at_the_moment_at_which_workers_fall_asleep() -> None:
    # Pauses around the time after which a worker sleeps, short and long ones.
    team, readers = Team(2), Readers(2)
    for number, pause in enumerate(np.tile(np.geomspace(1e-5, 2e-2, 60), 3)):
        end = time.perf_counter() + pause
        while time.perf_counter() < end:
            pass
        readers.run(team, number)
    team.close()


def test_idle_workers_use_no_time() -> None:
    team, readers = Team(4), Readers(4)
    readers.run(team, 0)
    fall_asleep(workers())
    before = [cpu_seconds(worker) for worker in workers()]
    work_alone(0.2)
    assert [cpu_seconds(worker) for worker in workers()] == before
    readers.run(team, 1)
    team.close()


def test_threads_that_wait_long_at_a_barrier_sleep() -> None:
    # A patience of nothing makes every wait a sleep, and every end of one a wake-up.
    team, readers = Team(3, patience=0.0), Readers(3)
    for number in range(500):
        readers.run(team, number)
    team.close()


@pytest.mark.parametrize(
    ("weight_bytes", "n_barriers", "expected"),
    [(6_000_000, 30, 30e-6), (60_000_000, 60, 50e-6), (4_000_000_000, 160, 200e-6), (0, 5, 30e-6)],
)
def test_patience_is_the_work_between_two_barriers(
    weight_bytes: int, n_barriers: int, expected: float
) -> None:
    assert fitting_patience(weight_bytes, n_barriers) == pytest.approx(expected)


def test_a_spin_takes_nanoseconds() -> None:
    assert 1e-10 < spin_seconds() < 1e-4


def test_two_teams_from_two_threads_at_once() -> None:
    finished: list[int] = []

    def work(number: int) -> None:
        team, readers = Team(2), Readers(2)
        for job in range(500):
            readers.run(team, job)
        team.close()
        finished.append(number)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(DEADLINE)
    assert sorted(finished) == [0, 1]


def test_one_team_from_several_threads() -> None:
    team = Team(2)
    readers = [Readers(2) for _ in range(3)]
    finished: list[int] = []

    def work(number: int) -> None:
        for job in range(200):
            readers[number].run(team, job)
        finished.append(number)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(DEADLINE)
    assert sorted(finished) == [0, 1, 2]
    team.close()


# --- the end of a team ------------------------------------------------------------------------


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rllama-")]


def test_closing_ends_the_workers_and_may_happen_twice() -> None:
    before = len(workers())
    team, readers = Team(4), Readers(4)
    readers.run(team, 0)
    assert len(workers()) == before + 3
    team.close()
    assert len(workers()) == before
    team.close()


def test_closing_while_workers_sleep_and_before_any_job() -> None:
    before = len(workers())
    Team(3).close()
    team = Team(3)
    fall_asleep(workers())
    team.close()
    assert len(workers()) == before


USE_AFTER_CLOSE = """
from pyrllama.cpu import compiler
from pyrllama.cpu.team import Team
from pyrllama.errors import RllamaError
import numpy as np
from pyrllama.cpu.records import READING, Records
record, parts = Records(READING), np.zeros(1024, np.int64)
record.set(data=parts.ctypes.data, part_bytes=256, ahead=0)
team = Team({threads})
team.close()
try:
    team.run(compiler.load("reading.one_stream"), record.address)
    print("ran")
except RllamaError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_closed_team_refuses_a_job_instead_of_waiting_for_ever(threads: int) -> None:
    assert run_python(USE_AFTER_CLOSE.format(threads=threads)).startswith("refused:")


def test_the_workers_of_a_dropped_team_end() -> None:
    before = set(workers())
    team, readers = Team(3), Readers(3)
    readers.run(team, 0)
    started = set(workers()) - before
    assert len(started) == 2
    del team
    gc.collect()
    for worker in started:
        worker.join(DEADLINE)
        assert not worker.is_alive()


def test_a_process_ends_with_teams_that_nobody_closed() -> None:
    script = """
from pyrllama.cpu.team import Team
from pyrllama.cpu import compiler
from pyrllama.cpu.records import READING, Records
import numpy as np
record, parts = Records(READING), np.zeros(1024, np.int64)
record.set(data=parts.ctypes.data, part_bytes=256, ahead=0)
idle, used = Team(2), Team(3)
used.run(compiler.load("reading.one_stream"), record.address)
print("done")
"""
    assert run_python(script) == "done\n"


FORK = """
import os, sys
sys.path.insert(0, {tests!r})
from cpu.test_team import Readers
from pyrllama.cpu.team import Team
team, readers = Team(3), Readers(3)
readers.run(team, 1)
child = os.fork()
for number in range(100):
    readers.run(team, number)
team.close()
if child == 0:
    os._exit(7)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_gets_workers_of_its_own() -> None:
    tests = Path(__file__).resolve().parents[1]
    assert run_python(FORK.format(tests=str(tests))) == "7\n"


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [0, -1, MAX_THREADS + 1, 10_000])
def test_an_impossible_number_of_threads_is_a_setting_error(n_threads: int) -> None:
    with pytest.raises(SettingError, match=f"threads is {n_threads}.*from 1 to 256") as caught:
        Team(n_threads)
    assert isinstance(caught.value, RllamaError)


def test_the_default_is_what_this_process_may_use() -> None:
    n = default_threads()
    assert 1 <= n <= min(os.cpu_count() or 1, MAX_THREADS)


def test_the_default_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_module, "performance_cores", lambda: 1000)
    assert default_threads() == MAX_THREADS
    assert fitting_threads(5 << 20) == 2
    assert fitting_threads(1) == 1
