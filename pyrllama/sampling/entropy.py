"""How surprising the candidates are, and what follows for the temperature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.sampling.selection import FLOAT32, run_sums, sum_of_products

if TYPE_CHECKING:
    from pyrllama.sampling.candidates import Candidates
    from pyrllama.sampling.selection import Row


def surprises(candidates: Candidates) -> tuple[Row, float]:
    """Return ``-ln p_i`` of every candidate, finite even where ``p_i`` is 0, and the mean of it.

    The mean, each weighed by ``p_i``, is the entropy in nats.
    """
    weights = candidates.weights()
    total = float(run_sums(weights).sum())
    below = np.max(candidates.logits) - candidates.logits
    np.minimum(below, FLOAT32.max * np.float32(min(1.0, candidates.temperature)), out=below)
    if candidates.temperature != 1.0:
        below /= np.float32(candidates.temperature)
    below += np.float32(math.log(total))
    return below, sum_of_products(weights, below) / total


def dynamic_temperature(
    candidates: Candidates, temperature: float, spread: float, exponent: float
) -> float:
    """Return ``low + (high - low) * (H / ln n)^exponent`` for ``n`` candidates of entropy ``H``.

    ``low`` and ``high`` are ``temperature`` less and plus ``spread``, but at least 0.  A sure
    prediction is sharpened, an unsure one flattened.  Source: kalomaze's entropy sampling, as
    in llama.cpp (pull request 4972).
    """
    low, high = max(0.0, temperature - spread), temperature + spread
    if len(candidates) < 2:
        return high
    _, entropy = surprises(candidates)
    share = min(max(entropy / math.log(len(candidates)), 0.0), 1.0)
    return float(low + (high - low) * share**exponent)
