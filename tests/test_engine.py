"""Requests side by side give what each gives alone, and the cache never runs dry for good."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_model import BOS, EOS, VOCAB_SIZE, FakeModel, next_token

from pyrllama.core import BLOCK_TOKENS, FinishReason, Request, Sampling
from pyrllama.engine import Engine
from pyrllama.errors import (
    BackendError,
    CacheFullError,
    PromptError,
    PromptTooLongError,
    SettingError,
)
from pyrllama.generation import Event, Generation

if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY = Sampling(temperature=0)


def request(n_tokens: int, max_tokens: int | None = None, *, first: int = BOS) -> Request:
    """Return a greedy request with a prompt of ``n_tokens``."""
    return Request((first, *range(1, n_tokens)), GREEDY, max_tokens)


def expected(prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the fake model's continuation, computed without any cache."""
    text = list(prompt)
    for _ in range(count):
        text.append(next_token(text))
    return tuple(text[len(prompt) :])


def run(engine: Engine, most_steps: int = 10_000) -> list[Event]:
    """Step until nothing is left, and fail rather than go on for ever."""
    events: list[Event] = []
    for _ in range(most_steps):
        if not engine.busy:
            return events
        events += engine.step()
    pytest.fail("the engine does not come to an end")


@pytest.mark.parametrize("n_prompt", [1, 15, 16, 17, 31, 32, 33, 64, 100])
def test_one_request_gives_its_continuation(n_prompt: int) -> None:
    engine = Engine(FakeModel(), max_seq_len=200)
    generation = engine.submit(request(n_prompt, 50))
    events = run(engine)
    assert generation.tokens == expected(generation.request.tokens, 50)
    assert [event.token for event in events] == list(generation.tokens)
    assert [event.finish for event in events] == [None] * 49 + [FinishReason.LENGTH]
    assert all(event.generation is generation for event in events)
    assert generation.logprobs == pytest.approx([0.0] * 50, abs=1e-6)
    assert engine.free_blocks == 8


def test_the_prompt_goes_through_in_chunks() -> None:
    model = FakeModel(max_batch_tokens=16)
    engine = Engine(model, max_seq_len=200)
    engine.submit(request(40, 2))
    run(engine)
    chunks = [batch.chunks[0] for batch in model.batches]
    assert [len(chunk.tokens) for chunk in chunks] == [16, 16, 8, 1]
    assert [chunk.start for chunk in chunks] == [0, 16, 32, 40]
    assert [chunk.outputs for chunk in chunks] == [0, 0, 1, 1]
    assert [len(chunk.blocks) for chunk in chunks] == [1, 1, 2, 2]


def test_a_step_puts_decodes_before_prompts() -> None:
    model = FakeModel(max_batch_tokens=16)
    engine = Engine(model, max_seq_len=200)
    first = engine.submit(request(4, 10))
    assert len(engine.step()) == 1
    second = engine.submit(request(40, 10, first=1))
    assert len(engine.step()) == 1
    assert [len(chunk.tokens) for chunk in model.batches[-1].chunks] == [1, 15]
    run(engine)
    for generation in (first, second):
        assert generation.tokens == expected(generation.request.tokens, 10)


def test_several_prompts_share_a_step() -> None:
    model = FakeModel(max_batch_tokens=16)
    engine = Engine(model, max_seq_len=200)
    for first in range(3):
        engine.submit(request(6, 2, first=first))
    assert len(engine.step()) == 2
    assert [len(chunk.tokens) for chunk in model.batches[-1].chunks] == [6, 6, 4]
    assert len(engine.step()) == 3


@pytest.mark.parametrize("n_blocks", [4, 5, 7, 12])
@pytest.mark.parametrize("max_batch_tokens", [1, 3, 64])
def test_many_requests_end_when_blocks_run_out(n_blocks: int, max_batch_tokens: int) -> None:
    engine = Engine(FakeModel(n_blocks, max_batch_tokens), max_seq_len=4 * BLOCK_TOKENS)
    generations = [engine.submit(request(5 + 9 * i, first=i)) for i in range(8)]
    run(engine)
    for generation in generations:
        room = 4 * BLOCK_TOKENS - len(generation.request.tokens)
        assert generation.tokens == expected(generation.request.tokens, room)
        assert generation.finish is FinishReason.LENGTH
    assert engine.free_blocks == n_blocks


def test_the_youngest_gives_way_and_the_oldest_ends_first() -> None:
    engine = Engine(FakeModel(n_blocks=3, max_batch_tokens=64), max_seq_len=96)
    old = engine.submit(request(30, 60))
    young = engine.submit(request(30, 60, first=1))
    ended = [event.generation for event in run(engine) if event.finish]
    assert ended == [old, young]
    assert young.tokens == expected(young.request.tokens, 60)
    assert young.timings.generated_tokens == 60


def test_a_request_waits_until_its_whole_prompt_fits() -> None:
    model = FakeModel(n_blocks=3, max_batch_tokens=64)
    engine = Engine(model, max_seq_len=96)
    engine.submit(request(40, 3))
    engine.submit(request(40, 3, first=1))
    engine.step()
    assert len(model.batches[-1].chunks) == 1
    assert engine.free_blocks == 1
    run(engine)
    assert engine.free_blocks == 3


def test_a_stop_token_ends_the_text_and_is_emitted() -> None:
    engine = Engine(FakeModel(script={6: EOS}), 100, frozenset({EOS}))
    generation = engine.submit(request(4))
    events = run(engine)
    assert generation.finish is FinishReason.STOP
    assert generation.tokens == (*expected(generation.request.tokens, 2), EOS)
    assert events[-1] == Event(generation, EOS, generation.logprobs[-1], FinishReason.STOP)


def test_without_stop_ids_the_text_goes_on() -> None:
    engine = Engine(FakeModel(script={6: EOS}), 20)
    generation = engine.submit(request(4))
    run(engine)
    assert generation.finish is FinishReason.LENGTH
    assert len(generation.tokens) == 16


@pytest.mark.parametrize("max_tokens", [None, 5, 500])
def test_the_context_bounds_prompt_and_continuation(max_tokens: int | None) -> None:
    engine = Engine(FakeModel(), max_seq_len=12)
    generation = engine.submit(request(5, max_tokens))
    run(engine)
    assert generation.generated == min(7, max_tokens or 7)
    assert generation.finish is FinishReason.LENGTH


def test_cancel_frees_the_blocks_at_any_time() -> None:
    engine = Engine(FakeModel(), max_seq_len=100)
    waiting = engine.submit(request(40))
    engine.cancel(waiting)
    assert not engine.busy
    running = engine.submit(request(40))
    other = engine.submit(request(4, 3, first=1))
    engine.step()
    engine.cancel(running)
    engine.cancel(running)
    assert running.finish is FinishReason.CANCELLED
    run(engine)
    assert other.tokens == expected(other.request.tokens, 3)
    engine.cancel(other)
    assert other.finish is FinishReason.LENGTH
    assert engine.free_blocks == 8


@pytest.mark.parametrize("error", [BackendError("no"), KeyboardInterrupt()])
def test_a_failing_step_cancels_its_requests_and_the_engine_goes_on(error: BaseException) -> None:
    model = FakeModel()
    engine = Engine(model, max_seq_len=100)
    failed = engine.submit(request(4))
    engine.step()
    model.error = error
    with pytest.raises(type(error)):
        engine.step()
    assert failed.finish is FinishReason.CANCELLED
    assert failed.generated == 1
    model.error = None
    generation = engine.submit(request(4, 3))
    run(engine)
    assert generation.tokens == expected(generation.request.tokens, 3)
    assert engine.free_blocks == 8


def test_not_a_number_is_an_error_and_frees_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    monkeypatch.setattr(
        model, "forward", lambda batch: np.full((batch.n_outputs, VOCAB_SIZE), math.nan)
    )
    engine = Engine(model, max_seq_len=100)
    engine.submit(request(4))
    with pytest.raises(BackendError):
        engine.step()
    assert not engine.busy
    assert engine.free_blocks == 8


def test_close_cancels_everything_and_closes_the_model() -> None:
    model = FakeModel()
    engine = Engine(model, max_seq_len=100)
    generations = [engine.submit(request(4, first=i)) for i in range(3)]
    engine.step()
    engine.close()
    assert {generation.finish for generation in generations} == {FinishReason.CANCELLED}
    assert model.closed
    assert not engine.busy


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Request((), GREEDY), PromptError, "no tokens"),
        (Request((1, VOCAB_SIZE), GREEDY), PromptError, "token 258 at position 1 .* of 258"),
        (Request((-1,), GREEDY), PromptError, "token -1 at position 0"),
        (request(100), PromptTooLongError, "100 tokens, but the context holds 100"),
        (request(4, 0), SettingError, "max_tokens is 0"),
        (request(4, -3), SettingError, "max_tokens is -3"),
    ],
)
def test_a_bad_request_is_refused_at_submit(
    bad: Request, error: type[Exception], message: str
) -> None:
    engine = Engine(FakeModel(), max_seq_len=100)
    with pytest.raises(error, match=message):
        engine.submit(bad)
    assert not engine.busy


def test_a_request_larger_than_the_cache_is_refused() -> None:
    engine = Engine(FakeModel(n_blocks=2), max_seq_len=100)
    with pytest.raises(CacheFullError, match="may grow to 99 tokens, but the KV cache holds 64"):
        engine.submit(request(10))
    generation = engine.submit(request(10, 55))  # the last token needs no place
    run(engine)
    assert generation.tokens == expected(generation.request.tokens, 55)


def test_an_idle_step_does_nothing() -> None:
    model = FakeModel()
    assert Engine(model, 10).step() == []
    assert model.batches == []


def test_seconds_are_booked_to_prompt_and_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("pyrllama.engine.perf_counter", lambda: next(clock))
    engine = Engine(FakeModel(max_batch_tokens=16), max_seq_len=100)
    generation = engine.submit(request(40, 5))
    run(engine)
    timings = generation.timings
    assert (timings.prompt_seconds, timings.decode_seconds) == (3, 4)
    assert (timings.prompt_tokens, timings.generated_tokens) == (40, 5)
    assert timings.decode_rate == 1.0


@pytest.mark.parametrize("n_tokens", [1, 16, 17, 70])
def test_logits_of_every_token(n_tokens: int) -> None:
    engine = Engine(FakeModel(), max_seq_len=70)
    tokens = list(range(n_tokens))
    logits = engine.logits(tokens)
    assert logits.shape == (n_tokens, VOCAB_SIZE)
    assert logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist() == [next_token(tokens[: i + 1]) for i in range(n_tokens)]
    assert engine.free_blocks == 8


def test_logits_refuse_what_does_not_fit() -> None:
    engine = Engine(FakeModel(n_blocks=2), max_seq_len=70)
    with pytest.raises(PromptTooLongError, match="71 tokens, but the context holds 70"):
        engine.logits(range(71))
    with pytest.raises(CacheFullError, match="65 tokens"):
        engine.logits(range(65))
    with pytest.raises(PromptError, match="no tokens"):
        engine.logits([])
    engine.submit(request(40, 10))
    engine.step()
    with pytest.raises(CacheFullError, match="only 0 of 2 are free"):
        engine.logits([1])


def test_a_seed_reproduces_a_text_beside_other_requests() -> None:
    """A flat distribution, so that the sampler alone decides."""

    def sampled(n_others: int) -> tuple[int, ...]:
        model = FakeModel()
        model._row = lambda text: np.zeros(VOCAB_SIZE, np.float32)  # type: ignore[method-assign]
        engine = Engine(model, max_seq_len=100)
        sampling = Sampling(top_k=0, seed=7)
        generation = engine.submit(Request((1, 2), sampling, 20))
        for other in range(n_others):
            engine.submit(Request((other,), Sampling(top_k=0, seed=other), 5))
        run(engine)
        return generation.tokens

    alone = sampled(0)
    assert sampled(4) == alone
    assert len(set(alone)) > 10


@settings(deadline=None)
@given(st.data())
def test_any_order_of_submit_step_and_cancel(data: st.DataObject) -> None:
    n_blocks = data.draw(st.integers(2, 6))
    engine = Engine(FakeModel(n_blocks, data.draw(st.integers(1, 40))), n_blocks * BLOCK_TOKENS)
    generations: list[Generation] = []
    for action in data.draw(st.lists(st.sampled_from(["submit", "step", "cancel"]), max_size=30)):
        if action == "submit":
            length = data.draw(st.integers(1, n_blocks * BLOCK_TOKENS - 1))
            count = data.draw(st.integers(1, 40))
            generations.append(engine.submit(request(length, count, first=len(generations))))
        elif action == "step":
            engine.step()
        elif generations:
            engine.cancel(data.draw(st.sampled_from(generations)))
    run(engine)
    assert engine.free_blocks == n_blocks
    for generation in generations:
        assert generation.tokens == expected(generation.request.tokens, generation.generated)
        if generation.finish is not FinishReason.CANCELLED:
            assert generation.generated == generation.limit


def test_generations_compare_by_identity() -> None:
    engine = Engine(FakeModel(), max_seq_len=100)
    first, second = engine.submit(request(4, 2)), engine.submit(request(4, 2))
    assert first != second
    run(engine)
    assert isinstance(first, Generation)
    assert first.tokens == second.tokens
