"""Stages that lower the logits of what the text has said already."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.sampling.selection import FLOAT32

if TYPE_CHECKING:
    from pyrllama.sampling.candidates import Candidates
    from pyrllama.sampling.history import Counts, History
    from pyrllama.sampling.selection import Ids, Row

MAX_LOG_FACTOR = 30.0
"""Bound of ``n * ln(r)``: beyond it a factor changes no probability that float32 can tell."""


def repetition(candidates: Candidates, text: History, penalty: float) -> None:
    """Scale the logits of tokens that were said: the original RLLaMA's penalty.

    With ``f = r^n`` for a token said ``n`` times, ``x`` becomes ``x * f`` where it is over 0 and
    ``x / f`` where it is under 0.  Under 1.0 it always penalises and over 1.0 it always
    encourages.  (The original multiplied negative logits too, so that a factor under 1
    rewarded them.)
    """
    where, counts = _said(candidates, *text.counts())
    if where.size:
        logits = candidates.editable()
        logits[where] = scaled(logits[where], penalty, counts)


def scaled(logits: Row, penalty: float, counts: Counts) -> Row:
    """Return logits of tokens said so many times after ``repetition``; minus infinity stays.

    The factor is held within e^-30 and e^30, so that nothing overflows.
    """
    exponents = np.clip(counts * math.log(penalty), -MAX_LOG_FACTOR, MAX_LOG_FACTOR)
    said = logits.astype(np.float64)
    said *= np.exp(np.where(said > 0, exponents, -exponents))
    return np.asarray(np.clip(said, np.where(said == -np.inf, said, FLOAT32.min), FLOAT32.max))


def repeat(
    candidates: Candidates,
    text: History,
    *,
    last_n: int,
    factor: float,
    presence: float,
    frequency: float,
) -> None:
    """Lower the logits of tokens among the last ``last_n``, of the prompt too.

    For a token that stands there ``n`` times, ``x`` becomes ``x / factor`` where it is over 0
    and ``x * factor`` elsewhere, less ``n * frequency + presence``.  Sources: the factor is of
    CTRL (Keskar et al., arXiv 1909.05858), mended for negative logits as llama.cpp and
    transformers do; presence and frequency are those of OpenAI's API.
    """
    where, counts = _said(candidates, *text.counts(last_n))
    if not where.size:
        return
    logits = candidates.editable()
    said = logits[where].astype(np.float64)
    said = np.where(said > 0, said / factor, said * factor) - (counts * frequency + presence)
    low = np.where(said == -np.inf, said, FLOAT32.min)
    logits[where] = np.clip(said, low, FLOAT32.max)


def _said(candidates: Candidates, tokens: Ids, counts: Counts) -> tuple[Ids, Counts]:
    """Return the positions of the candidates among ``tokens``, and the counts of these."""
    where, which = candidates.positions(tokens)
    return where, counts[which]
