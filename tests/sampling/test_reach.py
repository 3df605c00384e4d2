"""The greatest logits are enough: the same tokens by the same draws as from the whole row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.top_logits import top_of_row

from pyrllama.core import Sampling, TokenRules
from pyrllama.errors import BackendError, NoTokenLeftError
from pyrllama.sampling import Sampler

if TYPE_CHECKING:
    from pyrllama.core import TokenConstraint

N_LOGITS = 500
PROMPT = (3, 3, 8, 499)
"""Three different tokens."""
LLAMA_CPP = ("penalties", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")


REACHES: list[tuple[dict[str, Any], int | None]] = [
    ({"temperature": 0.0}, 1),
    ({"temperature": 0.0, "top_p": 0.5, "min_p": 0.1, "mirostat": 2}, 1),
    ({"temperature": 0.0, "repetition_penalty": 0.9}, None),
    ({"temperature": 0.0, "banned_tokens": (4,)}, None),
    ({"temperature": 0.0, "logit_bias": ((4, 1.0),)}, None),
    ({}, 21),
    ({"top_k": 7, "temperature": 0.6, "typical_p": 0.8, "min_p": 0.1, "xtc_probability": 0.5}, 8),
    ({"top_k": 7, "banned_tokens": (4, 9, 4)}, 10),
    ({"top_k": 7, "repetition_penalty": 0.9}, 11),
    ({"top_k": 7, "repetition_penalty": 1.1}, None),
    ({"top_k": 7, "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.1}, 12),
    ({"top_k": 7, "repeat_penalty": 1.1, "repeat_last_n": 2}, 10),
    ({"top_k": 7, "repeat_penalty": 1.1, "repeat_last_n": -1}, 11),
    ({"top_k": 7, "repeat_penalty": 0.9}, None),
    ({"top_k": 7, "presence_penalty": -0.1}, None),
    ({"top_k": 7, "dry_multiplier": 0.5}, None),
    ({"top_k": 7, "top_n_sigma": 1.0}, None),
    ({"top_k": 7, "top_p": 0.9}, None),
    ({"top_k": 7, "top_p": 0.9, "samplers": LLAMA_CPP}, 8),
    ({"top_k": 7, "top_p": 0.9, "samplers": ("top_p", "top_k")}, None),
    ({"top_k": 7, "min_p": 0.1, "samplers": ("min_p", "top_k")}, None),
    ({"top_k": 7, "samplers": ("temperature",)}, None),
    ({"top_k": 7, "dynatemp_range": 0.5}, None),
    ({"top_k": 7, "dynatemp_range": 0.5, "samplers": LLAMA_CPP}, 8),
    ({"top_k": 7, "mirostat": 2}, None),
    ({"top_k": 0}, None),
    ({"top_k": 0, "min_p": 0.1}, None),
]


@pytest.mark.parametrize(("settings", "reach"), REACHES)
def test_how_far_down_settings_reach(settings: dict[str, Any], reach: int | None) -> None:
    assert Sampler(Sampling(**settings), PROMPT).reach == reach


def test_ends_that_are_barred_count_until_they_may_come() -> None:
    rules = TokenRules(stop_ids=frozenset({1, 2}))
    sampler = Sampler(Sampling(top_k=7, min_tokens=1), PROMPT, rules)
    assert sampler.reach == 10
    sampler.accept(5)
    assert sampler.reach == 8
    assert Sampler(Sampling(top_k=7, ignore_eos=True), PROMPT, rules).reach == 10


@pytest.fixture
def constraint() -> Any:
    """Return a constraint that no token is ever asked of."""

    class Constraint:
        def start(self) -> object:
            return object()

    return Constraint()


def test_what_looks_at_all_tokens(constraint: TokenConstraint) -> None:
    for rules in (TokenRules(top_logprobs=3), TokenRules(constraint=constraint)):
        assert Sampler(Sampling(temperature=0), PROMPT, rules).reach is None


@pytest.mark.parametrize("settings", [s for s, reach in REACHES if reach is not None])
@pytest.mark.parametrize("spare", [0, 30])
def test_the_same_tokens_from_the_greatest_logits(settings: dict[str, Any], spare: int) -> None:
    """Of coarse logits, many of which are equal; ``spare`` are more than are needed."""
    random = np.random.default_rng(5)
    samplers = [Sampler(Sampling(**settings, seed=11), PROMPT) for _ in range(2)]
    for _ in range(60):
        row = np.round(random.normal(0, 4, N_LOGITS), 1).astype(np.float32)
        reach = samplers[1].reach
        assert reach is not None
        whole = samplers[0].sample(row)
        top = samplers[1].sample(top_of_row(row, reach + spare))
        assert top[0] == whole[0]
        assert top[1] == (pytest.approx(whole[1], abs=1e-6) if reach == 1 else whole[1])
        for sampler in samplers:
            sampler.accept(whole[0])


def test_the_same_errors_from_the_greatest_logits() -> None:
    row = np.zeros(N_LOGITS, np.float32)
    row[7] = np.nan
    with pytest.raises(BackendError, match="the largest logit is nan"):
        Sampler(Sampling(), ()).sample(row)
    row[:] = -np.inf
    row[7] = 1.0
    for logits in (row, top_of_row(row, 4)):
        with pytest.raises(NoTokenLeftError):
            Sampler(Sampling(top_k=2, banned_tokens=(7,)), ()).sample(logits)
