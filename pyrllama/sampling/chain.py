"""The stages that are switched on, in their order, bound to one text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pyrllama.sampling.dry import Breakers, dry
from pyrllama.sampling.entropy import dynamic_temperature
from pyrllama.sampling.penalties import repeat, repetition
from pyrllama.sampling.truncation import min_p, top_k, top_n_sigma, top_p, typical, xtc
from pyrllama.sampling_ranges import SamplerStage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from pyrllama.core import Sampling, TokenRules
    from pyrllama.sampling.candidates import Candidates
    from pyrllama.sampling.history import History

Stage = Callable[["Candidates"], None]

EDITING = frozenset({SamplerStage.REPETITION, SamplerStage.PENALTIES, SamplerStage.DRY})
"""Stages that change logits, which a greedy choice and Mirostat are subject to as well."""


def is_greedy(sampling: Sampling) -> bool:
    """Tell whether the largest logit is taken, so that nothing but penalties matters."""
    return sampling.temperature == 0.0 and sampling.dynatemp_range == 0.0


def make_chain(
    sampling: Sampling, rules: TokenRules, text: History, random: np.random.Generator
) -> list[Stage]:
    """Return the stages that would change anything, in their order."""
    return [_stage(name, sampling, rules, text, random) for name in stages_on(sampling)]


def stages_on(sampling: Sampling) -> list[SamplerStage]:
    """Return the names of the stages that would change anything, in their order."""
    names: Sequence[str] = tuple(SamplerStage) if sampling.samplers is None else sampling.samplers
    if is_greedy(sampling):
        names = [name for name in names if name in EDITING]
    elif sampling.mirostat:
        names = [name for name in names if name in EDITING | {SamplerStage.TEMPERATURE}]
    return [SamplerStage(name) for name in names if _IS_ON[SamplerStage(name)](sampling)]


def _stage(
    name: SamplerStage,
    sampling: Sampling,
    rules: TokenRules,
    text: History,
    random: np.random.Generator,
) -> Stage:
    """Return a stage with its settings."""
    s = sampling
    match name:
        case SamplerStage.REPETITION:
            return partial(repetition, text=text, penalty=s.repetition_penalty)
        case SamplerStage.PENALTIES:
            return _repeat_stage(s, text)
        case SamplerStage.DRY:
            return partial(dry, text=text, sampling=s, breakers=Breakers(rules.dry_breakers))
        case SamplerStage.TEMPERATURE:
            return partial(_heat, sampling=s)
        case SamplerStage.XTC:
            return partial(_xtc, sampling=s, random=random)
        case SamplerStage.TOP_N_SIGMA:
            return partial(top_n_sigma, n=s.top_n_sigma)
        case SamplerStage.TOP_K:
            return partial(top_k, k=s.top_k)
        case SamplerStage.TYPICAL:
            return partial(typical, p=s.typical_p)
        case SamplerStage.TOP_P:
            return partial(top_p, p=s.top_p, mass_before_top_k=s.samplers is None)
        case SamplerStage.MIN_P:
            return partial(min_p, p=s.min_p)


def _repeats_count(s: Sampling) -> bool:
    penalties = (s.repeat_penalty - 1.0, s.presence_penalty, s.frequency_penalty)
    return s.repeat_last_n != 0 and any(penalties)


_IS_ON: dict[SamplerStage, Callable[[Sampling], bool]] = {
    SamplerStage.REPETITION: lambda s: s.repetition_penalty != 1.0,
    SamplerStage.PENALTIES: _repeats_count,
    SamplerStage.DRY: lambda s: s.dry_multiplier > 0.0 and s.dry_penalty_last_n != 0,
    SamplerStage.TOP_N_SIGMA: lambda s: s.top_n_sigma > 0.0,
    SamplerStage.TEMPERATURE: lambda s: s.temperature != 1.0 or s.dynatemp_range > 0.0,
    SamplerStage.TOP_K: lambda s: s.top_k > 0,
    SamplerStage.TYPICAL: lambda s: s.typical_p < 1.0,
    SamplerStage.TOP_P: lambda s: s.top_p < 1.0,
    SamplerStage.MIN_P: lambda s: s.min_p > 0.0,
    SamplerStage.XTC: lambda s: s.xtc_probability > 0.0,
}
"""Whether settings let a stage change anything."""


def _repeat_stage(s: Sampling, text: History) -> Stage:
    return partial(
        repeat,
        text=text,
        last_n=s.repeat_last_n,
        factor=s.repeat_penalty,
        presence=s.presence_penalty,
        frequency=s.frequency_penalty,
    )


def _heat(candidates: Candidates, sampling: Sampling) -> None:
    temperature = sampling.temperature
    if sampling.dynatemp_range > 0.0:
        temperature = dynamic_temperature(
            candidates, temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
        )
    candidates.heat(temperature)


def _xtc(candidates: Candidates, sampling: Sampling, random: np.random.Generator) -> None:
    xtc(candidates, sampling.xtc_threshold, random.random(), sampling.xtc_probability)
