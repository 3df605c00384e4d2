"""Each stage changes the distribution as it says, and what bars tokens bars them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.sampling import chances, kept, log, row

from pyrllama.core import Sampling, TokenRules
from pyrllama.errors import NoTokenLeftError
from pyrllama.sampling import Sampler, distribution
from pyrllama.sampling.candidates import Candidates
from pyrllama.sampling.entropy import dynamic_temperature
from pyrllama.sampling.truncation import typical
from pyrllama.sampling_ranges import SamplerStage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Row = NDArray[np.float32]

# Truncation


def test_min_p_keeps_a_share_of_the_likeliest() -> None:
    logits = log(0.5, 0.25, 0.2, 0.05)
    assert kept(logits, min_p=0.41) == [0, 1]
    assert kept(logits, min_p=0.39) == [0, 1, 2]
    # Twice as hot, all are nearer to the likeliest; behind the filter the heat changes nothing.
    assert kept(logits, min_p=0.41, temperature=2.0) == [0, 1, 2]
    last = ("min_p", "temperature")
    assert kept(logits, min_p=0.41, temperature=2.0, samplers=last) == [0, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_top_n_sigma_does_not_depend_on_the_temperature(temperature: float) -> None:
    logits = np.random.default_rng(1).normal(0, 2, 5000).astype(np.float32)
    logits[17] = -np.inf
    finite = np.delete(logits, 17).astype(np.float64)
    wanted = np.flatnonzero(logits >= finite.max() - 1.5 * finite.std())
    assert kept(logits, top_n_sigma=1.5, temperature=temperature) == wanted.tolist()


def sorted_typical(logits: Row, p: float) -> list[int]:
    """Return what locally typical sampling keeps, by definition."""
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares /= shares.sum()
    surprise = -np.log(np.maximum(shares, 1e-300))
    distance = np.abs(surprise - np.sum(shares * surprise))
    order = np.argsort(distance, kind="stable")
    return sorted(order[: int(np.searchsorted(np.cumsum(shares[order]), p, "right")) + 1].tolist())


@pytest.mark.parametrize("size", [5, 100, 2049, 30_000])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.2, 3.0, 9.0])
def test_typical_equals_a_full_sort(size: int, p: float, spread: float) -> None:
    logits = np.random.default_rng(size).normal(0, spread, size).astype(np.float32)
    if size > 2049:
        logits[::7] = -np.inf
    candidates = Candidates(logits)
    typical(candidates, p)
    assert candidates.ids is not None
    got, wanted = set(candidates.ids.tolist()), set(sorted_typical(logits, p))
    assert len(got ^ wanted) <= 2  # float32 may tell two of equal distance apart otherwise
    assert got


def test_xtc_drops_the_top_choices_but_the_least_of_them() -> None:
    logits = log(0.4, 0.3, 0.2, 0.1)
    assert kept(logits, xtc_probability=1.0, xtc_threshold=0.15) == [2, 3]
    assert kept(logits, xtc_probability=1.0, xtc_threshold=0.5) == [0, 1, 2, 3]
    assert kept(log(0.4, 0.4, 0.2), xtc_probability=1.0, xtc_threshold=0.3) == [1, 2]


def test_xtc_takes_place_by_chance() -> None:
    logits = log(0.6, 0.4)
    sampler = Sampler(Sampling(xtc_probability=0.3, top_k=0, seed=4), [])
    dropped = sum(sampler.distribution(logits)[0] == 0.0 for _ in range(2000))
    assert dropped == pytest.approx(600, abs=62)  # three standard deviations


# Temperature


def test_dynamic_temperature_follows_the_entropy() -> None:
    sure, unsure = log(0.98, 0.01, 0.01), log(1 / 3, 1 / 3, 1 / 3)
    assert dynamic_temperature(Candidates(unsure), 1.0, 0.5, 1.0) == pytest.approx(1.5)
    share = -(0.98 * math.log(0.98) + 0.02 * math.log(0.01)) / math.log(3)
    got = dynamic_temperature(Candidates(sure), 1.0, 0.5, 2.0)
    assert got == pytest.approx(0.5 + share**2, rel=1e-5)
    assert dynamic_temperature(Candidates(row(1)), 1.0, 0.5, 1.0) == 1.5
    assert chances(sure, dynatemp_range=0.5)[0] > chances(sure)[0]


def test_a_range_takes_a_temperature_of_0_for_its_middle() -> None:
    got = chances(log(0.5, 0.5), temperature=0.0, dynatemp_range=1.0)
    np.testing.assert_allclose(got, [0.5, 0.5], rtol=1e-6)


# Mirostat


def test_mirostat_keeps_what_surprises_less_than_mu() -> None:
    logits = log(0.5, 0.25, 0.125, 0.125)
    # mu starts at 2 tau bits: a token of 3 bits is too much for 2.5.
    assert kept(logits, mirostat=2, mirostat_tau=1.25) == [0, 1]
    assert kept(logits, mirostat=2, mirostat_tau=1.5) == [0, 1, 2, 3]
    assert kept(logits, mirostat=2, mirostat_tau=0.0) == [0]


def test_mirostat_learns_from_accepted_tokens() -> None:
    logits = log(0.5, 0.25, 0.125, 0.125)
    sampler = Sampler(Sampling(mirostat=2, mirostat_tau=1.0, mirostat_eta=1.0, seed=0), [])
    token, logprob = sampler.sample(logits)  # mu is 2 bits: two tokens of 1 and 2 bits
    assert logprob == pytest.approx(math.log([2 / 3, 1 / 3][token]), abs=1e-6)
    assert np.count_nonzero(sampler.distribution(logits)) == 2
    sampler.accept(token)  # mu becomes 2 - (0.585 - 1) or 2 - (1.585 - 1)
    assert np.count_nonzero(sampler.distribution(logits)) == [2, 1][token]


def test_mirostat_holds_its_target() -> None:
    random = np.random.default_rng(5)
    sampler = Sampler(Sampling(mirostat=2, mirostat_tau=4.0, seed=1), [])
    surprises = []
    for _ in range(400):
        token, logprob = sampler.sample(random.normal(0, 2.5, 3000).astype(np.float32))
        sampler.accept(token)
        surprises.append(-logprob / math.log(2))
    assert np.mean(surprises[100:]) == pytest.approx(4.0, abs=0.15)


# Biases and bars


def test_a_bias_is_added() -> None:
    got = chances(row(1, 2, 3), logit_bias=((0, 2.0), (2, -1.0)))
    np.testing.assert_allclose(got, chances(row(3, 2, 2)), rtol=1e-6)


def test_a_huge_bias_does_not_overflow() -> None:
    got = chances(row(3e38, 2, 3), logit_bias=((0, 1e300), (1, -1e300)))
    assert got.tolist() == [1, 0, 0]


def test_penalties_behind_top_k_keep_the_order_of_equals() -> None:
    order = ("top_k", "penalties", "top_p")
    sampling = Sampling(top_k=3, top_p=0.3, presence_penalty=2.0, samplers=order)
    got = distribution(row(1, 3, 3, 5), sampling, [3])  # all three come to 3
    assert np.flatnonzero(got).tolist() == [1]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {}, {"top_k": 2}])
def test_banned_tokens_are_never_chosen(settings: dict[str, Any]) -> None:
    got = chances(row(9, 8, 1, 2), banned_tokens=(0, 1, 700), **settings)
    assert got[:2].tolist() == [0, 0]
    assert got.sum() == pytest.approx(1.0)
    with pytest.raises(NoTokenLeftError, match="banned_tokens"):
        chances(row(9, 8), banned_tokens=(0, 1), **settings)


def test_a_text_does_not_end_before_its_least_length() -> None:
    sampler = Sampler(Sampling(temperature=0, min_tokens=2), [], TokenRules(frozenset({0, 2})))
    said = []
    for _ in range(4):
        said.append(sampler.sample(row(9, 5, 8))[0])
        sampler.accept(said[-1])
    assert said == [1, 1, 0, 0]


def test_a_text_that_ignores_its_end_never_ends() -> None:
    got = chances(row(9, 5, 8), (), TokenRules(frozenset({0, 2})), ignore_eos=True)
    assert got.tolist() == [0, 1, 0]


class Only:
    """A constraint that allows some tokens, and then the end alone."""

    complete = True

    def __init__(self, *steps: set[int]) -> None:
        self.steps = steps
        self.at = 0

    def start(self) -> Only:
        return Only(*self.steps)

    def allowed(self, n_logits: int) -> NDArray[np.bool_]:
        return np.isin(np.arange(n_logits), list(self.steps[self.at]))

    def accept(self, token: int) -> None:
        assert token in self.steps[self.at]
        self.at += 1


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 50.0, "seed": 3}])
def test_a_constraint_goes_before_everything(settings: dict[str, Any]) -> None:
    rules = TokenRules(frozenset({0}), constraint=Only({2, 3}, {1, 4}, {0}))
    sampling = Sampling(min_tokens=9, logit_bias=((5, 99.0),), top_k=1, **settings)
    sampler, other = Sampler(sampling, [], rules), Sampler(sampling, [], rules)
    for allowed in ({2, 3}, {1, 4}, {0}):
        token, _ = sampler.sample(row(9, 8, 7, 6, 5, 4))
        assert token in allowed
        sampler.accept(token)
    assert other.sample(row(9, 8, 7, 6, 5, 4))[0] in {2, 3}
    banned = Sampler(Sampling(banned_tokens=(2, 3)), [], rules)
    with pytest.raises(NoTokenLeftError, match="schema or grammar"):
        banned.sample(row(9, 8, 7, 6, 5, 4))


def test_the_likeliest_tokens_are_the_models_own() -> None:
    logits = log(0.1, 0.4, 0.3, 0.2)
    rules = TokenRules(top_logprobs=2)
    sampler = Sampler(Sampling(temperature=0, banned_tokens=(1, 2)), [], rules)
    token, _ = sampler.sample(logits)
    assert (token, sampler.top) == (3, [])
    sampler.accept(token)
    (top,) = sampler.top
    assert top.tokens == (1, 2)
    np.testing.assert_allclose(np.exp(top.logprobs), [0.4, 0.3], rtol=1e-5)
    assert math.exp(top.chosen) == pytest.approx(0.2, rel=1e-5)


# The chain


def test_the_order_matters() -> None:
    logits = log(0.4, 0.3, 0.2, 0.1)
    settings: dict[str, Any] = {"top_k": 2, "top_p": 0.65}
    # Among the two that top-k leaves, the first has 0.57; of all, the two have 0.7.
    assert kept(logits, samplers=("top_k", "top_p"), **settings) == [0, 1]
    settings["top_p"] = 0.5
    assert kept(logits, samplers=("top_k", "top_p"), **settings) == [0]
    assert kept(logits, samplers=("top_p", "top_k"), **settings) == [0, 1]
    # The original's top-p counts the mass before top-k.
    assert kept(logits, **settings) == [0, 1]


def test_a_stage_that_is_not_named_is_left_out() -> None:
    logits = log(0.4, 0.3, 0.2, 0.1)
    assert kept(logits, top_k=1, min_p=0.7, samplers=("min_p",)) == [0, 1]
    assert kept(logits, top_k=1, samplers=()) == [0, 1, 2, 3]


LOGITS = st.floats(-50, 50, width=32) | st.floats(-(2.0**99), 2.0**99, width=32)

ON: dict[str, Any] = {
    "temperature": 0.8, "top_k": 15, "top_p": 0.9, "repetition_penalty": 0.95,
    "repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1,
    "dry_multiplier": 0.8, "top_n_sigma": 3.0, "typical_p": 0.9, "min_p": 0.01,
    "xtc_probability": 0.5, "dynatemp_range": 0.2, "banned_tokens": (3, 4), "seed": 1,
}  # fmt: skip
"""Every stage at once."""


@given(
    logits=arrays(np.float32, st.integers(6, 60), elements=LOGITS),
    order=st.permutations(list(SamplerStage)),
    on=st.sets(st.sampled_from(sorted(ON))),
    prompt=st.lists(st.integers(0, 59), max_size=30),
)
def test_any_chain_gives_a_distribution_without_banned_tokens(
    logits: Row, order: list[str], on: set[str], prompt: list[int]
) -> None:
    settings = {name: ON[name] for name in on} | {"seed": 1, "samplers": tuple(order)}
    sampling = Sampling(**settings)
    got = distribution(logits, sampling, prompt)
    assert got.sum() == pytest.approx(1.0)
    assert np.all(got >= 0)
    assert not got[list(sampling.banned_tokens)].any()
    token, logprob = Sampler(sampling, prompt).sample(logits)
    assert got[token] > 0
    assert math.exp(logprob) == pytest.approx(got[token], rel=1e-4)


def test_the_same_calls_give_the_same_tokens() -> None:
    rows = np.random.default_rng(1).normal(0, 3, (40, 300)).astype(np.float32)

    def tokens(seed: int) -> list[int]:
        sampler = Sampler(Sampling(**{**ON, "seed": seed}), [5, 6, 7])
        said = []
        for logits in rows:
            said.append(sampler.sample(logits)[0])
            sampler.accept(said[-1])
        return said

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)
