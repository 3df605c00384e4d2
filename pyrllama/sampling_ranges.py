"""What each setting of ``core.Sampling`` must hold, and the stages that it may name."""

from __future__ import annotations

import enum
import math
import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class SamplerStage(enum.StrEnum):
    """A stage of the sampler chain, in the order of the default; the names are llama.cpp's."""

    REPETITION = "repetition"
    """The original RLLaMA's penalty, which llama.cpp does not have."""
    PENALTIES = "penalties"
    DRY = "dry"
    TOP_N_SIGMA = "top_n_sigma"
    TEMPERATURE = "temperature"
    TOP_K = "top_k"
    TYPICAL = "typ_p"
    TOP_P = "top_p"
    MIN_P = "min_p"
    XTC = "xtc"


_OTHER_NAMES = {
    "temp": SamplerStage.TEMPERATURE,
    "nucleus": SamplerStage.TOP_P,
    "typ": SamplerStage.TYPICAL,
    "typical": SamplerStage.TYPICAL,
    "typical_p": SamplerStage.TYPICAL,
    "top_nsigma": SamplerStage.TOP_N_SIGMA,
}
"""What llama.cpp takes for some stages too."""


def stage_names(text: str) -> tuple[str, ...]:
    """Return the stages of ``top_k;top_p``; one that is not known stays as it is written."""
    names = [name.strip().lower().replace("-", "_") for name in text.split(";")]
    return tuple(_OTHER_NAMES.get(name, name) for name in names if name)


def _is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    return low <= operator.index(value) <= high


def _is_finite(value: float) -> bool:
    return -math.inf < value < math.inf


def _are_stages(names: tuple[str, ...] | None) -> bool:
    return names is None or (set(names) <= set(SamplerStage) and len(set(names)) == len(names))


SAMPLING_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda x: 0 <= x < math.inf, "a number from 0 (greedy) upwards"),
    "top_k": (lambda x: _is_whole(x, 0), "a whole number from 0 (off) upwards"),
    "top_p": (lambda x: 0 < x <= 1, "a number over 0 and at most 1 (off)"),
    "repetition_penalty": (lambda x: 0 < x < math.inf, "a number over 0; under 1 penalises"),
    "seed": (
        lambda x: x is None or _is_whole(x, 0, 2**64 - 1),
        "a whole number from 0 to 2^64-1",
    ),
    "repeat_penalty": (lambda x: 0 < x < math.inf, "a number over 0; over 1 penalises"),
    "repeat_last_n": (lambda x: _is_whole(x, -1), "a whole number from -1 (all) upwards"),
    "presence_penalty": (_is_finite, "a finite number; over 0 penalises"),
    "frequency_penalty": (_is_finite, "a finite number; over 0 penalises"),
    "dry_multiplier": (lambda x: 0 <= x < math.inf, "a number from 0 (off) upwards"),
    "dry_base": (lambda x: 1 <= x < math.inf, "a number from 1 upwards"),
    "dry_allowed_length": (lambda x: _is_whole(x, 1), "a whole number from 1 upwards"),
    "dry_penalty_last_n": (lambda x: _is_whole(x, -1), "a whole number from -1 (all) upwards"),
    "dry_sequence_breakers": (
        lambda x: type(x) is tuple and all(type(text) is str and text for text in x),
        "a tuple of texts that are not empty",
    ),
    "top_n_sigma": (_is_finite, "a finite number; 0 and less is off"),
    "typical_p": (lambda x: 0 < x <= 1, "a number over 0 and at most 1 (off)"),
    "min_p": (lambda x: 0 <= x <= 1, "a number from 0 (off) to 1"),
    "xtc_probability": (lambda x: 0 <= x <= 1, "a number from 0 (off) to 1"),
    "xtc_threshold": (lambda x: 0 < x <= 1, "a number over 0 and at most 1; over 0.5 is off"),
    "dynatemp_range": (lambda x: 0 <= x < math.inf, "a number from 0 (off) upwards"),
    "dynatemp_exponent": (lambda x: 0 <= x < math.inf, "a number from 0 upwards"),
    "mirostat": (lambda x: x in {0, 2}, "0 (off) or 2, the second version"),
    "mirostat_tau": (lambda x: 0 <= x < math.inf, "a number of bits from 0 upwards"),
    "mirostat_eta": (lambda x: 0 <= x < math.inf, "a number from 0 upwards"),
    "logit_bias": (
        lambda x: all(_is_whole(token, 0) and _is_finite(bias) for token, bias in x),
        "pairs of a token's id and a finite number",
    ),
    "banned_tokens": (lambda x: all(_is_whole(token, 0) for token in x), "ids of tokens"),
    "samplers": (_are_stages, "some of " + ", ".join(SamplerStage) + ", each once"),
    "min_tokens": (lambda x: _is_whole(x, 0), "a whole number from 0 upwards"),
    "ignore_eos": (lambda x: isinstance(x, bool), "true or false"),
}
"""For each setting of ``Sampling`` what it must hold, and that in words."""
