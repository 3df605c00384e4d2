"""Requests with common beginnings give what each gives alone, and compute less."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_model import VOCAB_SIZE, CopyingModel, FakeModel, next_token

from pyrllama.core import BLOCK_TOKENS, CacheMiss, FinishReason, Request, Sampling
from pyrllama.engine import Engine
from pyrllama.lookup import PromptLookup
from pyrllama.prefix import PrefixCache
from pyrllama.speculation import Hits, Speculation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyrllama.generation import Generation

GREEDY = Sampling(temperature=0)
MODELS = (FakeModel, CopyingModel)


def run(engine: Engine) -> None:
    """Step until nothing is left, and fail rather than go on for ever."""
    for _ in range(10_000):
        if not engine.busy:
            return
        engine.step()
    pytest.fail("the engine does not come to an end")


def generate(engine: Engine, prompt: Sequence[int], count: int) -> Generation:
    """Run one request to its end."""
    generation = engine.submit(Request(tuple(prompt), GREEDY, count))
    run(engine)
    return generation


def expected(prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the fake model's continuation, computed without any cache."""
    text = list(prompt)
    for _ in range(count):
        text.append(next_token(text))
    return tuple(text[len(prompt) :])


@pytest.mark.parametrize("model", MODELS)
def test_each_of_20_turns_computes_only_its_new_tokens(model: type[FakeModel]) -> None:
    """The token that ended an answer was never read, so it is new in the next turn too."""
    fake = model(n_blocks=32, max_batch_tokens=512)
    engine = Engine(fake, 1024)
    text: list[int] = []
    for turn in range(20):
        read_before = len(text)
        text += [turn, *range(100, 100 + turn % 7 + 5)]
        fake.batches.clear()
        generation = generate(engine, text, 9 + turn)
        computed = sum(batch.n_tokens for batch in fake.batches)
        new = len(text) - read_before + (1 if turn else 0)
        assert computed == new + generation.generated - 1
        assert generation.reused == len(text) - new
        assert generation.tokens == expected(text, 9 + turn)
        text += generation.tokens


def test_completions_of_one_prompt_share_its_blocks() -> None:
    fake = CopyingModel(n_blocks=12, max_batch_tokens=256)
    engine = Engine(fake, 256)
    prompt = tuple(range(110))
    generations = [engine.submit(Request(prompt, GREEDY, 12)) for _ in range(4)]
    engine.step()
    assert [len(chunk.tokens) for chunk in fake.batches[-1].chunks] == [110]
    engine.step()
    assert [len(chunk.tokens) for chunk in fake.batches[-1].chunks] == [1, 1, 1, 1]
    assert engine.free_blocks == 12 - 4 - 3
    run(engine)
    assert {generation.tokens for generation in generations} == {expected(prompt, 12)}
    assert [generation.reused for generation in generations] == [0, 109, 109, 109]
    assert engine.free_blocks == 12


def test_a_request_waits_for_the_beginning_it_shares_and_no_longer() -> None:
    fake = CopyingModel(n_blocks=16, max_batch_tokens=32)
    engine = Engine(fake, 512)
    first = engine.submit(Request(tuple(range(200)), GREEDY, 3))
    second = engine.submit(Request((*range(40), 7, 7), GREEDY, 3))
    engine.step()
    assert not second.held.blocks
    run(engine)
    assert second.reused == 40
    for generation in (first, second):
        assert generation.tokens == expected(generation.request.tokens, 3)


def test_what_was_reused_is_said_and_why_not_more() -> None:
    engine = Engine(CopyingModel(), 200)
    prompt = list(range(50))
    first = generate(engine, prompt, 2)
    assert (first.timings.reused_tokens, first.not_reused) == (0, CacheMiss.NEW)
    again = generate(engine, prompt, 2)
    assert (again.timings.reused_tokens, again.not_reused) == (49, None)
    edited = generate(engine, [*prompt[:40], 9, 9], 2)
    assert (edited.timings.reused_tokens, edited.not_reused) == (40, CacheMiss.DIFFERS)


def test_what_a_cancelled_request_computed_is_reused() -> None:
    engine = Engine(FakeModel(max_batch_tokens=40), 200)
    cancelled = engine.submit(Request(tuple(range(90)), GREEDY, 5))
    engine.step()
    engine.cancel(cancelled)
    assert generate(engine, range(90), 5).reused == 40


def test_logits_need_blocks_of_their_own_and_may_push_others_out() -> None:
    engine = Engine(FakeModel(n_blocks=3), 96)
    generate(engine, range(60), 3)
    engine.logits(range(96))
    assert generate(engine, range(60), 3).tokens == expected(range(60), 3)
    assert engine.free_blocks == 3


class Guesser:
    """Proposes what the fake model will say, now and then something else."""

    def __init__(self, seed: int, right: float) -> None:
        self._random, self._right = random.Random(seed), right

    def look(self, text: Sequence[int]) -> int | None:
        return self._random.choice([None, 0, 3])

    def propose(self, text: Sequence[int], most: int) -> tuple[int, ...]:
        told = list(text)
        for _ in range(self._random.randint(0, most)):
            guessed = self._random.random() < self._right
            told.append(next_token(told) if guessed else self._random.randrange(VOCAB_SIZE))
        return tuple(told[len(text) :])

    def close(self) -> None: ...


class Bold(Speculation):
    """Drafts whenever it can, whatever it costs."""

    def _worthwhile(self, kind: int, room: int) -> int:
        self._hits.setdefault(kind, Hits(kind))
        return min(room, 15)


@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("limit", [1, 2, 3, 50, None])
def test_drafts_never_change_a_text(
    model: type[FakeModel], right: float, limit: int | None
) -> None:
    fake = model(max_batch_tokens=12)
    engine = Engine(fake, 120, frozenset({50}), speculation=Bold(Guesser(1, right)))
    plain = Engine(model(max_batch_tokens=12), 120, frozenset({50}))
    for prompt in ([1], [*range(60)], [*range(31)], [*range(60), 3]):
        drafted, told = (e.submit(Request(tuple(prompt), GREEDY, limit)) for e in (engine, plain))
        run(engine)
        run(plain)
        assert drafted.tokens == told.tokens
        assert (drafted.finish, drafted.logprobs) == (told.finish, told.logprobs)
        assert 0 <= drafted.accepted <= drafted.drafted
    assert engine.free_blocks == 8
    if right == 1.0 and limit is None:
        steps, tokens = len(fake.batches), sum(batch.n_outputs for batch in fake.batches)
        assert tokens > 2 * steps


def test_sampling_with_drafts_uses_the_same_random_numbers() -> None:
    def sampled(speculation: Speculation | None) -> tuple[int, ...]:
        model = FakeModel()

        def row(
            text: np.ndarray[tuple[int], np.dtype[np.int64]],
        ) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
            logits = np.zeros(VOCAB_SIZE, np.float32)
            logits[int(text[-1]) % 5 : int(text[-1]) % 5 + 3] = 6
            return logits

        model._row = row  # type: ignore[method-assign]
        engine = Engine(model, 200, speculation=speculation)
        generation = engine.submit(Request((1, 2, 3, 4), Sampling(top_k=0, seed=7), 150))
        run(engine)
        if speculation:
            assert generation.accepted > 0
        return generation.tokens

    assert sampled(Bold(PromptLookup())) == sampled(None)


def test_a_text_that_is_read_again_says_nothing_of_drafts() -> None:
    """The younger one gives way, and is read again alone, in several steps."""
    speculation = Bold(Guesser(3, 0.9))
    prefixes = PrefixCache(FakeModel(n_blocks=3), reuse=False)
    engine = Engine(
        FakeModel(n_blocks=3, max_batch_tokens=20), 96, prefixes=prefixes, speculation=speculation
    )
    generations = [engine.submit(Request((first, *range(30)), GREEDY, 60)) for first in (1, 2)]
    run(engine)
    for generation in generations:
        assert generation.tokens == expected(generation.request.tokens, 60)
    assert set(speculation._times._times) <= set(range(1, 17))


class Harness:
    """An engine under random requests, checked after every step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.generations: list[Generation] = []

    def check(self) -> None:
        """Count every block once: held by a text, or free."""
        held = {block for generation in self.generations for block in generation.held.blocks}
        assert self.engine.free_blocks == self.engine.model.n_blocks - len(held)
        pool = self.engine.prefixes.pool
        assert all(pool.is_held(block) for block in held)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_requests_with_common_beginnings(data: st.DataObject) -> None:
    """The fake model reads what the blocks really hold, so that a wrong one changes the text."""
    n_blocks = data.draw(st.integers(2, 7))
    model = data.draw(st.sampled_from(MODELS))(n_blocks, data.draw(st.integers(1, 70)))
    seed, right = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0.0, 0.8]))
    drafting = Bold(Guesser(seed, right)) if data.draw(st.booleans()) else None
    prefixes = PrefixCache(model, reuse=data.draw(st.sampled_from([True, True, False])))
    engine = Engine(model, n_blocks * BLOCK_TOKENS, prefixes=prefixes, speculation=drafting)
    harness, texts = Harness(engine), [list(range(n_blocks * BLOCK_TOKENS))]
    for action in data.draw(st.lists(st.sampled_from(["submit", "step", "step", "cancel"]))):
        if action == "submit":
            base = data.draw(st.sampled_from(texts))
            length = data.draw(st.integers(1, min(len(base), n_blocks * BLOCK_TOKENS - 1)))
            tail = data.draw(st.lists(st.integers(0, 1), max_size=3))
            prompt = [*base[:length], *tail][: n_blocks * BLOCK_TOKENS - 1]
            count = data.draw(st.integers(1, 40))
            harness.generations.append(engine.submit(Request(tuple(prompt), GREEDY, count)))
        elif action == "step":
            engine.step()
        elif harness.generations:
            engine.cancel(data.draw(st.sampled_from(harness.generations)))
        harness.check()
        texts[1:] = [generation.text for generation in harness.generations]
    run(engine)
    harness.check()
    for generation in harness.generations:
        assert generation.tokens == expected(generation.request.tokens, generation.generated)
        if generation.finish is not FinishReason.CANCELLED:
            assert generation.generated == generation.limit
