"""Each setting changes the distribution as the module says, and seeds reproduce a text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyrllama.core import Sampling
from pyrllama.errors import BackendError
from pyrllama.sampling import Sampler, distribution
from pyrllama.sampling.penalties import scaled
from pyrllama.sampling.selection import RUN, SORTED_AT_ONCE, largest, likeliest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Row = NDArray[np.float32]

ALL: dict[str, Any] = {"top_k": 0, "top_p": 1.0}
"""Settings under which every token may be chosen."""


def row(*logits: float) -> Row:
    return np.array(logits, np.float32)


def log(*probabilities: float) -> Row:
    return np.asarray(np.log(np.array(probabilities)), np.float32)


def chances(
    logits: Row, occurrences: Sequence[int] | None = None, **settings: Any
) -> NDArray[np.float64]:
    prompt = np.repeat(np.arange(logits.size), occurrences if occurrences is not None else 0)
    return distribution(logits, Sampling(**{**ALL, **settings}), prompt.tolist())


# Temperature


def test_temperature_divides_the_logits() -> None:
    np.testing.assert_allclose(chances(log(0.2, 0.8), temperature=1.0), [0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose(
        chances(log(0.2, 0.8), temperature=0.5), [0.04 / 0.68, 0.64 / 0.68], atol=1e-6
    )
    np.testing.assert_allclose(chances(log(0.2, 0.8), temperature=2.0), [1 / 3, 2 / 3], atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-5])
def test_a_tiny_temperature_is_as_good_as_greedy(temperature: float) -> None:
    assert chances(row(1, 3, 2, -np.inf), temperature=temperature).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_huge_temperature_makes_all_alike_but_what_is_ruled_out(temperature: float) -> None:
    got = chances(row(1, 3, -np.inf), temperature=temperature)
    np.testing.assert_allclose(got, [0.5, 0.5, 0], atol=1e-6)


def test_greedy_takes_the_largest_and_of_equals_the_lowest_id() -> None:
    assert chances(row(1, 7, 7, 2), temperature=0.0).tolist() == [0, 1, 0, 0]
    sampler = Sampler(Sampling(temperature=0.0, top_k=1, top_p=0.1), [])
    assert sampler.sample(row(1, 7, 7, 2))[0] == 1


def test_greedy_logprob_is_that_of_the_softmax_of_the_penalised_logits() -> None:
    sampler = Sampler(Sampling(temperature=0.0), [])
    token, logprob = sampler.sample(log(0.25, 0.75))
    assert token == 1
    assert logprob == pytest.approx(math.log(0.75), abs=1e-6)
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=0.5), [1])
    token, logprob = sampler.sample(row(2, 2))
    assert token == 0
    assert logprob == pytest.approx(math.log(math.e / (math.e + 1)), abs=1e-6)


# Top-k and top-p


def test_top_k_keeps_the_largest_and_of_equals_the_lowest_ids() -> None:
    logits = row(1, 5, 3, 5, 3, 3, -2)
    assert largest(logits, 1).tolist() == [1]
    assert largest(logits, 4).tolist() == [1, 3, 2, 4]
    assert largest(logits, 7).tolist() == [1, 3, 2, 4, 5, 0, 6]
    assert largest(row(0.0, -0.0, 1.0), 2).tolist() == [2, 0]
    everything = chances(logits)
    assert chances(logits, top_k=7).tolist() == everything.tolist()
    assert chances(logits, top_k=1000).tolist() == everything.tolist()


def test_top_k_tells_apart_what_float32_probabilities_cannot() -> None:
    logits = row(100, -50, -40, -60)  # all but the first have probability 0
    assert largest(logits, 3).tolist() == [0, 2, 1]


def test_top_p_counts_the_mass_of_the_whole_vocabulary() -> None:
    logits = log(0.4, 0.3, 0.2, 0.1)
    # Scaled up after top-k, 0.4 / 0.9 and 0.3 / 0.9 would reach 0.75 without the third.
    got = chances(logits, top_k=3, top_p=0.75)
    np.testing.assert_allclose(got, [4 / 9, 3 / 9, 2 / 9, 0], atol=1e-6)
    # A mass that the k tokens do not have together leaves them all.
    got = chances(logits, top_k=2, top_p=0.95)
    np.testing.assert_allclose(got, [4 / 7, 3 / 7, 0, 0], atol=1e-6)


def test_top_p_between_equals_keeps_the_lowest_ids() -> None:
    got = chances(log(0.1, 0.2, 0.2, 0.2, 0.3), top_p=0.6)
    np.testing.assert_allclose(got, [0, 2 / 7, 2 / 7, 0, 3 / 7], atol=1e-6)


SIZES = [2, 2000, SORTED_AT_ONCE + 1, 32_000, 128_256]
"""Vocabularies that are sorted whole, parted first, and no multiple of ``RUN``."""


def spread_logits(size: int, spread: float) -> Row:
    logits = np.random.default_rng(7).normal(0, spread, size).astype(np.float32)
    logits[::3] = logits[1]  # many equals
    return logits


@pytest.mark.parametrize("p", [0.01, 0.9, 0.999])
@pytest.mark.parametrize("k", [0, 1, 2000])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.1, 4])
def test_filters_equal_a_full_sort(p: float, k: int, size: int, spread: float) -> None:
    logits = spread_logits(size, spread)
    exact = np.exp(logits.astype(np.float64) - logits.max())
    exact /= exact.sum()
    order = np.argsort(-logits, kind="stable")[: k or None]
    count = min(int(np.searchsorted(np.cumsum(exact[order]), p - 1e-6)) + 1, order.size)
    got = chances(logits, top_k=k, top_p=p)
    kept = np.flatnonzero(got)
    # A sum of float32 weights is known to 1e-7 or so: next to the bound another count is right.
    assert abs(kept.size - count) <= 1e-7 / exact[order[count - 1]]
    assert kept.tolist() == sorted(order[: kept.size].tolist())
    np.testing.assert_allclose(got[kept], exact[kept] / exact[kept].sum(), rtol=1e-5)


def test_top_p_keeps_the_largest_weights_as_they_are() -> None:
    weights = row(0.25, 1, 0.5, 0.5, 0.25)  # a mass of 2.5
    assert likeliest(weights, 0.3).tolist() == [0, 1, 0, 0, 0]
    assert likeliest(weights, 0.5).tolist() == [0, 1, 0.5, 0, 0]
    assert likeliest(weights, 0.8).tolist() == [0, 1, 0.5, 0.5, 0]
    assert likeliest(weights, 0.85).tolist() == [0.25, 1, 0.5, 0.5, 0]
    assert likeliest(weights, 1e-9).tolist() == [0, 1, 0, 0, 0]


def test_top_p_where_all_are_alike_keeps_the_lowest_ids() -> None:
    weights = np.ones(5 * SORTED_AT_ONCE, np.float32)
    kept = likeliest(weights, 0.3)
    assert np.flatnonzero(kept).tolist() == list(range(3 * SORTED_AT_ONCE // 2))


# Repetition penalty


def test_penalty_is_a_power_of_the_occurrences() -> None:
    got = scaled(row(8, 8, 8), 0.5, np.array([1, 2, 3]))
    np.testing.assert_allclose(got, [4, 2, 1], rtol=1e-6)


def test_penalty_divides_negative_logits() -> None:
    got = scaled(row(-8, -8, 0), 0.5, np.array([1, 2, 5]))
    np.testing.assert_allclose(got, [-16, -32, 0], rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_under_1_penalises_and_over_1_encourages(sign: int) -> None:
    logits = row(2, 1, 1.5) * np.float32(sign)
    plain = chances(logits)
    for token in range(3):
        said = np.eye(3, dtype=np.int64)[token]
        once = chances(logits, said, repetition_penalty=0.8)
        twice = chances(logits, 2 * said, repetition_penalty=0.8)
        encouraged = chances(logits, said, repetition_penalty=1.25)
        assert twice[token] < once[token] < plain[token] < encouraged[token]


def test_penalty_and_temperature_work_together() -> None:
    got = chances(row(2, -1, 1), [1, 1, 0], temperature=0.5, repetition_penalty=0.5)
    expected = np.exp([2 * 0.5 / 0.5, -1 / 0.5 / 0.5, 1 / 0.5])
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-5)


def test_a_penalty_of_1_changes_nothing() -> None:
    logits = row(2, -1, 1)
    said = chances(logits, [9, 9, 9], repetition_penalty=1.0, repeat_penalty=1.0)
    assert said.tolist() == chances(logits).tolist()


@pytest.mark.parametrize("penalty", [1e-300, 0.5, 0.999, 1.001, 2.0, 1e300])
@pytest.mark.parametrize("count", [1, 10**6, 2**60])
def test_penalty_never_overflows(penalty: float, count: int) -> None:
    largest = float(np.finfo(np.float32).max)
    logits = row(3e38, largest, -largest, -3, 0, 1e-40, -np.inf)
    got = scaled(logits, penalty, np.array([count] * 7))
    assert np.all(np.isfinite(got[:6]))
    assert got[6] == -np.inf


def test_greedy_is_subject_to_the_penalty() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=0.5), [])
    said = []
    for _ in range(4):
        token, _ = sampler.sample(row(10, 7, 4))
        sampler.accept(token)
        said.append(token)
    assert said == [0, 1, 0, 2]  # 10 7 4 -> 5 7 4 -> 5 3.5 4 -> 2.5 3.5 4


def test_tokens_of_the_prompt_count() -> None:
    settings = Sampling(temperature=0.0, repetition_penalty=0.5)
    assert Sampler(settings, []).sample(row(10, 7, 4))[0] == 0
    assert Sampler(settings, [0]).sample(row(10, 7, 4))[0] == 1
    assert Sampler(settings, [0, 0, 1]).sample(row(10, 7, 4))[0] == 2


def test_a_sampled_token_counts_only_once_accepted() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=0.5), [])
    assert [sampler.sample(row(10, 7))[0] for _ in range(3)] == [0, 0, 0]
    sampler.accept(0)
    assert sampler.sample(row(10, 7))[0] == 1


# Drawing


def test_a_seed_reproduces_the_choices() -> None:
    logits = np.random.default_rng(1).normal(0, 1, 500).astype(np.float32)

    def choices(seed: int | None) -> tuple[int, list[tuple[int, float]]]:
        sampler = Sampler(Sampling(seed=seed, top_k=0, repetition_penalty=0.9), [3])
        drawn = []
        for _ in range(50):
            drawn.append(sampler.sample(logits))
            sampler.accept(drawn[-1][0])
        return sampler.seed, drawn

    assert choices(42) == choices(42)
    assert choices(42) != choices(43)
    assert choices(2**64 - 1)[0] == 2**64 - 1
    fresh, drawn = choices(None)
    assert choices(fresh) == (fresh, drawn)
    assert choices(None)[0] != fresh


@pytest.mark.parametrize("settings", [{}, {"top_k": 4}, {"top_p": 0.8}, {"temperature": 0.7}])
def test_frequencies_follow_the_distribution(settings: dict[str, Any]) -> None:
    logits = row(1.5, -0.5, 0.0, 2.0, 1.0, 0.5)
    expected = chances(logits, **settings)
    sampler = Sampler(Sampling(**{**ALL, **settings}, seed=5), [])
    n = 8_000
    drawn = [sampler.sample(logits) for _ in range(n)]
    counts = np.bincount([token for token, _ in drawn], minlength=logits.size)
    kept = expected > 0
    assert not counts[~kept].any()
    chi_square = np.sum((counts[kept] - n * expected[kept]) ** 2 / (n * expected[kept]))
    assert chi_square < 20.5  # exceeded once in 1,000 seeds with 5 degrees of freedom
    for token, logprob in drawn[:100]:
        assert logprob == pytest.approx(math.log(expected[token]), abs=1e-9)


@pytest.mark.parametrize("size", [RUN, RUN + 1, 10 * RUN - 3])
def test_every_run_of_a_vocabulary_is_drawn_from(size: int) -> None:
    chosen = np.arange(0, size, 21)
    logits = np.full(size, -np.inf, np.float32)
    logits[chosen] = np.linspace(0, 1, chosen.size)
    sampler = Sampler(Sampling(**ALL, seed=3), [])
    drawn = {sampler.sample(logits)[0] for _ in range(500)}
    assert drawn == set(chosen.tolist())


def test_a_token_that_is_ruled_out_is_never_drawn() -> None:
    logits = np.full(300, -np.inf, np.float32)
    logits[[17, 230]] = 0.0
    sampler = Sampler(Sampling(top_k=0, seed=0), [])
    assert {sampler.sample(logits)[0] for _ in range(200)} == {17, 230}


def test_the_vocabulary_may_be_smaller_than_a_token_of_the_prompt() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=0.5), [999, 0])
    sampler.accept(1200)
    assert sampler.sample(row(3, 2))[0] == 1


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.5}])
@pytest.mark.parametrize("bad", [[1, math.nan, 2], [1, math.inf, 2], [-math.inf] * 3])
def test_logits_without_a_largest_are_an_error(settings: dict[str, Any], bad: list[float]) -> None:
    sampler = Sampler(Sampling(**settings), [])
    with pytest.raises(BackendError, match="largest logit is"):
        sampler.sample(row(*bad))
    with pytest.raises(BackendError, match="damaged"):
        chances(row(*bad), **settings)


@given(
    logits=arrays(
        np.float32, st.integers(1, 40), elements=st.floats(-(2.0**99), 2.0**99, width=32)
    ),
    temperature=st.floats(0, 100),
    k=st.integers(0, 50),
    p=st.floats(1e-6, 1.0),
    penalty=st.floats(1e-3, 1e3),
    prompt=st.lists(st.integers(0, 39)),
)
def test_any_settings_give_a_distribution_and_a_token_of_it(
    logits: Row, temperature: float, k: int, p: float, penalty: float, prompt: list[int]
) -> None:
    settings = Sampling(temperature, k, p, penalty, seed=1)
    got = distribution(logits, settings, prompt)
    assert got.sum() == pytest.approx(1.0)
    assert np.all(got >= 0)
    if k:
        assert np.count_nonzero(got) <= k
    token, logprob = Sampler(settings, prompt).sample(logits)
    assert got[token] > 0
    assert logprob <= 0
