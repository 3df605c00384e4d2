"""The measurement of the memory: every pattern is tried, the best ones often."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pyrllama.cpu import bandwidth
from pyrllama.cpu.bandwidth import PATTERNS, Pattern, best_median

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Time that passes only while a pattern reads."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        """Return the seconds of this clock."""
        return self.now


class Memory:
    """Takes the seconds that a function of the pattern and of the number of its run says."""

    def __init__(self, clock: Clock, seconds: Callable[[Pattern, int], float]) -> None:
        self.runs: Counter[Pattern] = Counter()
        self._clock, self._seconds = clock, seconds

    def __call__(self, pattern: Pattern) -> float:
        self.runs[pattern] += 1
        taken = self._seconds(pattern, self.runs[pattern])
        self._clock.now += taken
        return taken


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bandwidth, "time", clock)
    return clock


def test_the_patterns() -> None:
    ahead: dict[str, list[int]] = {}
    for pattern in PATTERNS:
        ahead.setdefault(pattern.kernel, []).append(pattern.ahead)
    names = ("one_stream", "two_streams", "four_streams")
    assert ahead == {
        **{f"reading.{name}": [0, 512, 1024, 1536] for name in names},
        "reading.one_stream_once": [1024, 5120],
    }


def test_the_fastest_patterns_are_repeated(clock: Clock) -> None:
    memory = Memory(clock, lambda pattern, _: 0.01 * (1 + PATTERNS.index(pattern)))
    assert best_median(memory) == 0.01
    assert [memory.runs[pattern] for pattern in PATTERNS] == [5] * 4 + [2] * 10


def test_one_slow_run_neither_drops_a_pattern_nor_counts(clock: Clock) -> None:
    best = PATTERNS[7]
    memory = Memory(clock, lambda pattern, run: 0.02 if pattern != best or run == 1 else 0.01)
    assert best_median(memory) == 0.01
    assert memory.runs[best] == 5


def test_slow_memory_is_measured_less_often(clock: Clock) -> None:
    memory = Memory(clock, lambda pattern, _: 0.5 + 0.01 * PATTERNS.index(pattern))
    assert best_median(memory) == 0.5
    assert set(memory.runs.values()) == {1}
    assert clock.now - 100 < 9


def test_very_slow_memory_is_measured_at_least_once(clock: Clock) -> None:
    memory = Memory(clock, lambda *_: 60.0)
    assert best_median(memory) == 60.0
    assert set(memory.runs) == set(PATTERNS)
