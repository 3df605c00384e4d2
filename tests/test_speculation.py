"""How many tokens are drafted: on a clock that knows what a pass costs, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lookup as stand_in
import numpy as np
import pytest
from support.fake_model import CopyingModel

from pyrllama.core import Request, Sampling
from pyrllama.engine import Engine
from pyrllama.lookup import PromptLookup
from pyrllama.model_config import ModelConfig
from pyrllama.prefix import PrefixCache
from pyrllama.speculation import ROW_COST, Hits, PassTimes, Speculation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.core import Batch, Timings

COSTS = {1: 1.0, 2: 1.67, 4: 2.15, 6: 2.85, 8: 3.9, 12: 4.9, 16: 6.5, 400: 110.0}
"""Plain steps that a pass over so many tokens takes: Q4_0 at the 1B shape on two cores."""


class Clock:
    """Time that passes only in the model."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedModel(CopyingModel):
    """Says a given text, and lets the clock run as a real model would."""

    def __init__(self, clock: Clock, text: list[int]) -> None:
        super().__init__(n_blocks=64, max_batch_tokens=512)
        self.config = ModelConfig(
            "timed", 30_000, 4, 1, 1, 1, 4, 4, 1e-5, 10_000.0, context_length=4096
        )
        self._clock, self._told = clock, text

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        self._clock.now += float(np.interp(batch.n_tokens, list(COSTS), list(COSTS.values())))
        (chunk,) = batch.chunks
        rows = np.zeros((chunk.outputs, self.config.vocab_size), np.float32)
        first = chunk.start + len(chunk.tokens) - chunk.outputs + 1
        for n, row in enumerate(rows):
            row[self._told[first + n] if first + n < len(self._told) else 0] = 10
        return rows


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the time of the engine and of speculation."""
    clock = Clock()
    monkeypatch.setattr("pyrllama.engine.perf_counter", clock)
    monkeypatch.setattr("pyrllama.speculation.perf_counter", clock)
    return clock


def run(clock: Clock, prompt: list[int], text: list[int], lookup: Speculation | None) -> Timings:
    model = TimedModel(clock, prompt + text)
    engine = Engine(model, 2000, prefixes=PrefixCache(model), speculation=lookup)
    generation = engine.submit(Request(tuple(prompt), Sampling(temperature=0), len(text)))
    while generation.finish is None:
        engine.step()
    assert list(generation.tokens) == text
    return generation.timings


def gain(clock: Clock, name: str, count: int = 256) -> tuple[float, Timings]:
    """Return how many times as fast a text of the benchmark is with lookup."""
    random = np.random.default_rng(1)
    prompt = random.integers(1000, 30_000, size=384).tolist()
    text = stand_in.TEXTS[name](random, prompt, count)
    plain = run(clock, prompt, text, None)
    drafted = run(clock, prompt, text, Speculation(PromptLookup()))
    return drafted.decode_rate / plain.decode_rate, drafted


@pytest.mark.parametrize(("name", "least"), [("edit", 1.9), ("quotes", 1.4)])
def test_a_text_that_repeats_its_prompt_is_sooner_told(
    clock: Clock, name: str, least: float
) -> None:
    times, timings = gain(clock, name)
    assert times > least
    assert timings.accepted_tokens > 0.8 * timings.drafted_tokens


@pytest.mark.parametrize("name", ["fresh", "misleading"])
@pytest.mark.parametrize("count", [24, 256])
def test_other_texts_lose_next_to_nothing(clock: Clock, name: str, count: int) -> None:
    assert gain(clock, name, count)[0] > 0.95


def test_losses_stay_bounded_when_every_draft_is_wrong(clock: Clock) -> None:
    """A drafter that is sure of itself and always wrong, after a time when it was right."""

    class Liar(PromptLookup):
        def look(self, text: Sequence[int]) -> int:
            return 5

        def propose(self, text: Sequence[int], most: int) -> tuple[int, ...]:
            return (29_999,) * most

    prompt, text = list(range(100)), list(range(5000, 5400))
    plain = run(clock, prompt, text, None)
    drafted = run(clock, prompt, text, Speculation(Liar()))
    assert drafted.decode_rate > 0.95 * plain.decode_rate
    assert drafted.accepted_tokens == 0


def test_nothing_is_drafted_before_a_plain_step_was_timed() -> None:
    speculation = Speculation(PromptLookup())
    repeating = [1, 2, 3, 4] * 20
    assert speculation.draft(repeating, 8) == ()
    for _ in range(2):
        speculation.record(1.0, 0, 1)
    assert speculation.draft(repeating, 8) == (1, 2, 3, 4, 1)
    assert speculation.draft(repeating, 0) == ()
    assert speculation.draft(repeating, 2) == (1, 2)


def test_times_between_known_passes_are_guessed() -> None:
    times = PassTimes()
    times.add(1, 2.0)
    assert times.of(5) == 2.0 + 4 * ROW_COST * 2.0
    times.add(5, 60.0)  # the first of its size
    assert times.of(5) == 2.0 + 4 * ROW_COST * 2.0
    for _ in range(2):
        times.add(5, 6.0)
    assert times.of(3) == 4.0
    assert times.of(7) == 6.0 + 2 * (6.0 - 2.0) / 4  # as steeply as before
    for seconds in (1.0, 9.0, 3.0):
        times.add(1, seconds)
    assert times.of(1) == 2.5


def test_a_row_beyond_the_known_passes_is_never_taken_to_be_free() -> None:
    times = PassTimes()
    for n_tokens, seconds in ((1, 1.0), (2, 1.01)):
        for _ in range(2):
            times.add(n_tokens, seconds)
    assert times.of(6) == 1.01 + 4 * ROW_COST


def test_passes_grow_from_those_that_were_measured() -> None:
    times = PassTimes()
    for measured, largest in ((1, 6), (4, 8), (6, 12), (12, 24)):
        times.add(measured, 1.0)
        times.add(measured, 1.0)
        assert times.largest_to_try == largest


def test_hits_follow_what_drafts_became() -> None:
    weak, strong = Hits(0), Hits(5)
    assert weak.rate < strong.rate < 1
    for _ in range(50):
        weak.add(4, 4)
        strong.add(0, 4)
    assert weak.rate > 0.95
    assert strong.rate < 0.05
    assert weak.expected(3) == pytest.approx(4, rel=0.1)
    assert strong.expected(3) == pytest.approx(1, rel=0.1)


# --- lookup -----------------------------------------------------------------------------------


def test_what_followed_the_same_words_is_proposed() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 4, 5, 6, 7, 2, 3]
    assert lookup.look(text) == 1
    assert lookup.propose(text, 3) == (4, 5, 6)


def test_the_last_match_counts_and_a_longer_one_is_stronger() -> None:
    lookup = PromptLookup()
    text = [8, 1, 2, 3, 5, 8, 1, 2, 3, 6, 9, 2, 3]
    assert lookup.look(text) == 1
    assert lookup.propose(text, 2) == (6, 9)
    text += [6, 9, 2, 3]
    assert lookup.look(text) == 4


def test_a_text_that_repeats_itself_goes_on_so() -> None:
    lookup = PromptLookup()
    text = [7, 1, 2, 1, 2]
    assert lookup.look(text) is not None
    assert lookup.propose(text, 5) == (1, 2, 1, 2, 1)


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 2, 3, 4]])
def test_a_new_pair_proposes_nothing(text: list[int]) -> None:
    assert PromptLookup().look(text) is None


def test_a_replaced_token_is_stepped_over_and_a_failed_guess_ends_it() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3]
    assert lookup.look(text) == 1
    assert lookup.propose(text, 3) == (4, 5, 6)
    text += [4, 20]
    assert lookup.look(text) == 0
    assert lookup.propose(text, 3) == (6, 7, 8)
    text += [6, 7, 21]
    assert lookup.look(text) == 0
    assert lookup.propose(text, 1) == (9,)
    text += [22]
    assert lookup.look(text) is None


def test_another_text_is_looked_up_in_itself() -> None:
    lookup = PromptLookup()
    first = [1, 2, 3, 1, 2]
    assert lookup.look(first) is not None
    assert lookup.look([4, 5, 1, 2]) is None
    first += [3, 9]
    assert lookup.look(first) is None
    first += [1, 2]
    assert lookup.propose(first, 1) == (3,) if lookup.look(first) is not None else ()
