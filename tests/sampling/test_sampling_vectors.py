"""The distributions that llama.cpp's own tests expect of each stage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pyrllama.core import Sampling, TokenRules
from pyrllama.sampling import distribution
from pyrllama.sampling.candidates import Candidates
from pyrllama.sampling.truncation import min_p

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Case = dict[str, Any]
ORDER = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
SHORT = {"k": "top_k", "p": "top_p", "m": "min_p"}


@pytest.fixture(scope="module")
def cases(data: Path) -> dict[str, list[Case]]:
    path = data / "vectors" / "sampling.json"
    loaded: dict[str, list[Case]] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return loaded


SETTINGS: dict[str, Callable[[Case], Case]] = {
    "temp": lambda c: {"temperature": c["temp"]},
    "temp_ext": lambda c: {
        "temperature": c["temp"], "dynatemp_range": c["delta"], "dynatemp_exponent": c["exponent"]
    },
    "top_k": lambda c: {"top_k": c["k"]},
    # A mass of 0 is refused as a setting; anything close to it keeps one token as well.
    "top_p": lambda c: {"top_p": c["p"] or 1e-9},
    # Over 1 is refused as a setting; the stage itself is tested with it below.
    "min_p": lambda c: {"min_p": min(c["p"], 1.0)},
    # Chances are drawn: 0.99 is nearly always, and 1 is always.
    "xtc": lambda c: {"xtc_probability": round(c["p"]), "xtc_threshold": c["t"]},
    "typical": lambda c: {"typical_p": c["p"]},
    "penalties": lambda c: {
        "repeat_penalty": c["repeat_penalty"], "repeat_last_n": len(c["last_tokens"]),
        "frequency_penalty": c["alpha_frequency"], "presence_penalty": c["alpha_presence"],
    },
    "dry": lambda c: {
        "dry_multiplier": c["multiplier"], "dry_base": c["base"],
        "dry_allowed_length": c["allowed_length"], "dry_penalty_last_n": c["penalty_last_n"],
    },
    "top_n_sigma": lambda c: {"top_n_sigma": c["n"]},
}  # fmt: skip
"""Settings of the sampler for a case, by the stage."""


@pytest.mark.parametrize("samplers", [None, ORDER])
@pytest.mark.parametrize("stage", SETTINGS)
def test_a_stage_gives_what_llama_cpp_gives(
    cases: dict[str, list[Case]], stage: str, samplers: tuple[str, ...] | None
) -> None:
    for case in cases[stage]:
        logits = np.log(np.array(case["probs"])).astype(np.float32)
        settings = {"top_k": 0, "samplers": samplers, "seed": 1, **SETTINGS[stage](case)}
        rules = TokenRules(dry_breakers=tuple(map(tuple, case.get("seq_breakers", ()))))
        got = distribution(logits, Sampling(**settings), case.get("last_tokens", ()), rules)
        expected = np.array([p for p in case["expected"] if p > 0])
        expected /= expected.sum()  # typical sampling's are not scaled again there
        kept = np.sort(got[got > 1e-6])
        np.testing.assert_allclose(kept[-expected.size :], np.sort(expected), atol=1e-5)


def test_min_p_over_1_keeps_the_likeliest(cases: dict[str, list[Case]]) -> None:
    for case in cases["min_p"]:
        if case["p"] > 0:
            candidates = Candidates(np.log(np.array(case["probs"])).astype(np.float32))
            min_p(candidates, case["p"])
            assert len(candidates) == len(case["expected"])


def left(case: Case) -> list[int]:
    """Return the tokens that a queue of stages leaves of ``logits = ln(id)``, by definition."""
    ids = np.arange(1, case["n_vocab"])[::-1]  # the largest first; the token 0 has no chance
    for stage in case["sequence"]:
        shares = ids / ids.sum()
        if stage == "k":
            ids = ids[: case["top_k"]]
        elif stage == "p" and case["top_p"] < 1:
            before = np.cumsum(shares) - shares
            ids = ids[(before < case["top_p"] - 1e-6) | (np.arange(ids.size) == 0)]
        elif stage == "m":
            ids = ids[ids >= case["min_p"] * ids[0] * (1 - 1e-7)]
    return sorted(ids.tolist())


def test_stages_in_any_order(cases: dict[str, list[Case]]) -> None:
    assert {len(case["sequence"]) for case in cases["sampler_queue"]} == {1, 2, 3}
    for case in cases["sampler_queue"]:
        with np.errstate(divide="ignore"):
            logits = np.log(np.arange(case["n_vocab"])).astype(np.float32)
        settings = Sampling(
            samplers=tuple(SHORT[letter] for letter in case["sequence"]),
            top_k=case["top_k"], top_p=case["top_p"] or 1e-9, min_p=case["min_p"],
        )  # fmt: skip
        got = distribution(logits, settings)
        assert np.flatnonzero(got).tolist() == left(case), case
