"""The penalties lower what was said, as they say, and DRY what would repeat a sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sampling import chances, row

from pyrllama.core import Sampling, TokenRules
from pyrllama.sampling import Sampler
from pyrllama.sampling.dry import Breakers, continuations
from pyrllama.sampling.history import History


def test_repeat_penalty_divides_or_multiplies_once_however_often_it_was_said() -> None:
    got = chances(row(2, -2, 1), [0, 0, 0, 1], repeat_penalty=2.0)
    np.testing.assert_allclose(got, chances(row(1, -4, 1)), rtol=1e-6)


def test_presence_counts_once_and_frequency_each_time() -> None:
    prompt = [0, 0, 0, 1]
    got = chances(row(5, 5, 5), prompt, presence_penalty=1.0)
    np.testing.assert_allclose(got, chances(row(4, 4, 5)), rtol=1e-6)
    got = chances(row(5, 5, 5), prompt, frequency_penalty=1.0)
    np.testing.assert_allclose(got, chances(row(2, 4, 5)), rtol=1e-6)


@pytest.mark.parametrize(("last_n", "expected"), [(0, [5, 5, 5]), (1, [5, 5, 4]), (2, [5, 4, 4])])
def test_penalties_look_at_the_last_tokens_only(last_n: int, expected: list[float]) -> None:
    got = chances(row(5, 5, 5), [0, 1, 2], presence_penalty=1.0, repeat_last_n=last_n)
    np.testing.assert_allclose(got, chances(row(*expected)), rtol=1e-6)


def test_a_token_said_later_counts_too() -> None:
    sampler = Sampler(Sampling(temperature=0, repeat_penalty=10.0, repeat_last_n=2), [])
    said = []
    for _ in range(5):
        said.append(sampler.sample(row(9, 8, 7, 6))[0])
        sampler.accept(said[-1])
    assert said == [0, 1, 2, 0, 1]


def test_penalties_after_top_k_find_their_tokens() -> None:
    order = ("top_k", "penalties", "repetition")
    got = chances(row(1, 4, 3, 2), [2, 0], presence_penalty=1.0, top_k=3, samplers=order)
    np.testing.assert_allclose(got, chances(row(-np.inf, 4, 2, 2)), rtol=1e-6)


def test_penalties_after_the_temperature_see_divided_logits() -> None:
    order = ("temperature", "penalties")
    got = chances(row(4, 2), [0], temperature=2.0, presence_penalty=1.0, samplers=order)
    np.testing.assert_allclose(got, chances(row(1, 1)), rtol=1e-6)


def test_history_grows() -> None:
    text = History([3, 1, 3])
    for token in (7, 1, 90):
        text.append(token)
    assert text.last(2).tolist() == [1, 90]
    assert text.last(-1).tolist() == [3, 1, 3, 7, 1, 90]
    assert [part.tolist() for part in text.counts()] == [[1, 3, 7, 90], [2, 2, 1, 1]]
    assert [part.tolist() for part in text.counts(2)] == [[1, 90], [1, 1]]


# DRY


def by_definition(tokens: list[int], shortest: int) -> dict[int, int]:
    """Return for every token the longest repeated run that it would prolong."""
    longest: dict[int, int] = {}
    for end in range(1, len(tokens)):
        n = 0
        while n < end and tokens[end - 1 - n] == tokens[len(tokens) - 1 - n]:
            n += 1
        if n >= shortest:
            longest[tokens[end]] = max(n, longest.get(tokens[end], 0))
    return longest


@given(st.lists(st.integers(0, 2), min_size=2, max_size=60), st.integers(1, 4))
def test_repetitions_are_those_of_the_definition(tokens: list[int], shortest: int) -> None:
    following, lengths = continuations(np.array(tokens), shortest, len(tokens))
    got = dict(zip(following.tolist(), lengths.tolist(), strict=True))
    assert got == by_definition(tokens, shortest)


def test_dry_grows_with_the_length() -> None:
    prompt = [1, 2, 3, 9, 1, 2, 3]
    got = chances(np.full(10, 20, np.float32), prompt, dry_multiplier=2.0, dry_base=3.0)
    lowered = np.log(got[0] / got)
    assert lowered[9] == pytest.approx(2.0 * 3.0 ** (3 - 2), rel=1e-5)
    assert np.count_nonzero(lowered > 1e-6) == 1


def test_dry_stops_at_a_breaker_and_spares_it() -> None:
    prompt = [1, 2, 3, 9, 1, 2, 3]
    flat = np.full(10, 20, np.float32)
    for breakers in ([(2,)], [(2, 3)], [(9,)]):
        rules = TokenRules(dry_breakers=tuple(breakers))
        got = chances(flat, prompt, rules, dry_multiplier=2.0)
        np.testing.assert_allclose(got, np.full(10, 0.1), rtol=1e-6)
    assert Breakers([(2, 3), (1,)]).since(np.array([1, 2, 3, 4])) == 1
    assert Breakers([(2, 3), (5,)]).since(np.array([1, 2, 900])) == 3
    assert Breakers([(3,), (1, 2, 3, 4, 5)]).since(np.array([3, 1, 3])) == 0
    assert Breakers([(1, 2, 3, 4, 5)]).since(np.array([9, 1, 2])) == 3
    assert Breakers([]).since(np.array([1, 2])) == 2


def test_dry_never_overflows() -> None:
    prompt = [5] * 3000
    got = chances(np.full(10, 20, np.float32), prompt, dry_multiplier=1e30, dry_base=1e30)
    assert got[5] == 0.0
    assert got.sum() == pytest.approx(1.0)
