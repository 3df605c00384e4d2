"""How many of a row's greatest logits a choice can depend on, so that a device need give no more.

Where all stages before top-k only lower logits, and those of few tokens, what top-k leaves is
among the ``k`` greatest of the model's and as many more as are lowered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.sampling.chain import is_greedy, stages_on
from pyrllama.sampling.history import ALL
from pyrllama.sampling_ranges import SamplerStage

if TYPE_CHECKING:
    from pyrllama.core import Sampling, TokenRules
    from pyrllama.sampling.history import History


class Reach:
    """How far down the logits the choices of one text reach."""

    def __init__(self, sampling: Sampling, rules: TokenRules) -> None:
        self._sampling = sampling
        self._greedy = is_greedy(sampling)
        on = stages_on(sampling)
        self._before = on[: on.index(SamplerStage.TOP_K)] if SamplerStage.TOP_K in on else on
        whole = bool(rules.constraint or rules.top_logprobs or sampling.logit_bias)
        # An edited logit changes the logprob of a greedy token, whichever it is.
        bounded = not on if self._greedy else self._bounded(on)
        self._needs_all = whole or not bounded

    def of(self, text: History, n_barred: int) -> int | None:
        """Return how many of the greatest logits are enough behind a text; None for all."""
        if self._needs_all:
            return None
        if self._greedy:
            return None if n_barred else 1
        # One more, so that top-k leaves some out and sorts the rest, as it does a vocabulary.
        return self._sampling.top_k + n_barred + self._n_penalised(text) + 1

    def _bounded(self, on: list[SamplerStage]) -> bool:
        """Tell whether what top-k leaves, and all that follows from it, is in few logits."""
        if SamplerStage.TOP_K not in on:
            return False
        if SamplerStage.TOP_P in on and self._sampling.samplers is None:
            return False  # its mass counts what top-k dropped
        return all(self._only_lowers(stage) for stage in self._before)

    def _only_lowers(self, stage: SamplerStage) -> bool:
        """Tell whether a stage keeps the order of all logits but for those that it lowers."""
        s = self._sampling
        match stage:
            case SamplerStage.TEMPERATURE:
                return s.dynatemp_range == 0.0
            case SamplerStage.REPETITION:
                return s.repetition_penalty < 1.0
            case SamplerStage.PENALTIES:
                additions = s.presence_penalty, s.frequency_penalty
                return s.repeat_penalty >= 1.0 and min(additions) >= 0.0
            case _:
                return False

    def _n_penalised(self, text: History) -> int:
        """Return how many tokens penalties may lower."""
        if SamplerStage.REPETITION in self._before:
            return text.n_distinct
        if SamplerStage.PENALTIES in self._before:
            last_n = self._sampling.repeat_last_n
            return text.n_distinct if last_n == ALL else int(text.last(last_n).size)
        return 0
