"""Settings of the sampler from several places, and which of them is in force.

A request goes before a flag, a flag before what the model's files say, and these before the
defaults of ``Sampling``.  Each place gives only what it sets: a dictionary of fields.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from pyrllama.core import Sampling
from pyrllama.errors import SettingError
from pyrllama.sampling_ranges import SAMPLING_RANGES, stage_names

LONGEST_SHOWN = 80
"""Characters of a model's senseless value that a message shows."""
OFF_ELSEWHERE = range(-1, 1)
"""What models' files say for no top-k at all."""


class SamplingSettings(TypedDict, total=False):
    """The fields of ``Sampling`` as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Iterable[str]
    top_n_sigma: float
    typical_p: float
    min_p: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]]
    banned_tokens: Iterable[int]
    samplers: str | Iterable[str] | None
    min_tokens: int
    ignore_eos: bool


class Source(enum.StrEnum):
    """Where a setting comes from, the strongest first."""

    REQUEST = "request"
    FLAG = "flag"
    MODEL = "model"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings in force, and where each of them comes from."""

    sampling: Sampling
    sources: Mapping[str, Source]


def resolve(
    *,
    request: SamplingSettings | None = None,
    flags: SamplingSettings | None = None,
    model: Mapping[str, Any] | None = None,
) -> Resolved:
    """Return what is in force of the settings of each place.

    Raises ``TypeError`` for a setting that there is not, ``SettingError`` for a value out of
    its range, which says so where it is the model's own.
    """
    layers = {Source.MODEL: model, Source.FLAG: flags, Source.REQUEST: request}
    values: dict[str, Any] = {}
    sources = dict.fromkeys(SAMPLING_RANGES, Source.DEFAULT)
    for source, settings in layers.items():
        for name, value in (settings or {}).items():
            if name not in SAMPLING_RANGES:
                raise TypeError(f"there is no setting {name!r} of the sampler")
            values[name] = plain(name, value)
            if source == Source.MODEL and name == "top_k" and value in OFF_ELSEWHERE:
                values[name] = 0
            sources[name] = source
    try:
        return Resolved(Sampling(**values), sources)
    except SettingError as error:
        if sources[error.name] != Source.MODEL:
            raise
        raise SettingError(
            f"{error.name} in the model's own settings",
            Shown(error.value),
            f"{error.allowed}; mend its files, or leave their settings out (--no-model-sampling)",
        ) from None


class Shown:
    """A value as messages show it: cut, where a file makes it endless."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        text = repr(self._value)
        return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def plain(name: str, value: Any) -> Any:
    """Return a value in the form that ``Sampling`` keeps: tuples for lists and the like.

    What cannot be brought into it stays as it is, for ``Sampling`` to refuse.
    """
    form = _FORMS.get(name)
    if form is None or value is None:
        return value
    try:
        return form(value)
    except (TypeError, ValueError):
        return value


def _pairs(value: Any) -> tuple[tuple[int, float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((int(token), float(bias)) for token, bias in pairs)


_FORMS: dict[str, Callable[[Any], Any]] = {
    "logit_bias": _pairs,
    "banned_tokens": tuple,
    "dry_sequence_breakers": lambda value: (value,) if isinstance(value, str) else tuple(value),
    "samplers": lambda value: stage_names(value if isinstance(value, str) else ";".join(value)),
}
