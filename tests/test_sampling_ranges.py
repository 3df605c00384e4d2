"""Every setting of the sampler has a range, and what is out of it is named."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pyrllama.core import Sampling
from pyrllama.errors import SettingError
from pyrllama.sampling_ranges import SAMPLING_RANGES

BAD: dict[str, Any] = {
    "temperature": [-1, math.nan, math.inf, "hot", None],
    "top_k": [-1, 2.5, "many"],
    "top_p": [0, 1.1, math.nan],
    "repetition_penalty": [0, -1, math.inf],
    "seed": [-1, 2**64, 1.5],
    "repeat_penalty": [0, math.nan],
    "repeat_last_n": [-2, 0.5],
    "presence_penalty": [math.inf, math.nan],
    "frequency_penalty": [math.inf],
    "dry_multiplier": [-1],
    "dry_base": [0.5],
    "dry_allowed_length": [0],
    "dry_penalty_last_n": [-2],
    "dry_sequence_breakers": [("",), "x", (1,)],
    "top_n_sigma": [math.inf],
    "typical_p": [0, 2],
    "min_p": [-0.1, 1.1],
    "xtc_probability": [-0.1, 1.1],
    "xtc_threshold": [0, 1.1],
    "dynatemp_range": [-1],
    "dynatemp_exponent": [-1],
    "mirostat": [1, 3, []],
    "mirostat_tau": [-1],
    "mirostat_eta": [-1],
    "logit_bias": [((-1, 0.0),), ((1, math.inf),), (3,), 7],
    "banned_tokens": [(-1,), ("x",), 7],
    "samplers": [("top_q",), ("top_k", "top_k")],
    "min_tokens": [-1],
    "ignore_eos": ["yes"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in BAD.items() for v in vs])
def test_a_setting_out_of_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^{name} is "):
        Sampling(**{name: value})


def test_every_setting_has_a_range() -> None:
    assert set(BAD) == set(SAMPLING_RANGES) == set(Sampling.__dataclass_fields__)
