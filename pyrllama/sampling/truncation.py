"""Stages that leave fewer candidates, and change nothing among those that they leave."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.sampling.entropy import surprises
from pyrllama.sampling.selection import (
    FLOAT32,
    MASS_TOLERANCE,
    SORTED_AT_ONCE,
    largest,
    likeliest,
    run_sums,
    softmax_weights,
    sum_of_products,
)

if TYPE_CHECKING:
    from pyrllama.sampling.candidates import Candidates
    from pyrllama.sampling.selection import Ids, Row

HIGHEST_XTC_THRESHOLD = 0.5
"""No two tokens can have more than this each."""
BINS = 4096
"""Parts into which typical sampling sorts tokens before it sorts one of them."""


def top_k(candidates: Candidates, k: int) -> None:
    """Keep the ``k`` largest logits; between equals the lower id.

    Source: Fan et al., "Hierarchical Neural Story Generation", arXiv 1805.04833.
    """
    candidates.close_up()
    if k >= len(candidates):
        return
    candidates.before_top_k = candidates.logits
    if candidates.falling:
        candidates.keep(slice(k))
    else:
        candidates.keep(largest(candidates.logits, k), falling=True)


def top_p(candidates: Candidates, p: float, *, mass_before_top_k: bool) -> None:
    """Keep the smallest set of the most probable whose mass reaches ``p``.

    The mass counts the probabilities among the candidates, or, as in the original RLLaMA, among
    those that top-k was given; where all left do not reach ``p``, all stay.  Source: Holtzman
    et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751.
    """
    candidates.close_up()
    if candidates.ids is None:
        candidates.keep_weights(likeliest(candidates.weights(), p))
        return
    weights = candidates.weights()
    if mass_before_top_k and candidates.before_top_k is not None:
        weights = softmax_weights(candidates.before_top_k, candidates.temperature)
    mass = (p - MASS_TOLERANCE) * float(run_sums(weights).sum())
    candidates.sort()
    masses = np.cumsum(candidates.weights(), dtype=np.float64)
    candidates.keep(slice(int(np.searchsorted(masses, mass)) + 1))


def min_p(candidates: Candidates, p: float) -> None:
    """Keep the candidates that are at least ``p`` times as probable as the likeliest.

    Source: Nguyen et al., "Turning Up the Heat", arXiv 2407.01082.
    """
    candidates.close_up()
    logits = candidates.logits
    top = np.max(logits)
    floor = float(top) + math.log(p) * candidates.temperature
    candidates.keep(np.flatnonzero(logits >= min(_as_float32(floor), top)))


def top_n_sigma(candidates: Candidates, n: float) -> None:
    """Keep the logits within ``n`` standard deviations of the largest.

    Logits of minus infinity do not count.  Dividing by a temperature changes nothing.  Source:
    Tang et al., "Top-n-sigma: Not All Logits Are You Need", arXiv 2411.07641.
    """
    candidates.close_up()
    logits = candidates.logits
    finite, total = logits, run_sums(logits).sum()
    if not np.isfinite(total):
        finite = logits[logits > -np.inf]
        total = run_sums(finite).sum()
    distances = finite - np.float32(total / finite.size)
    sigma = math.sqrt(sum_of_products(distances, distances) / finite.size)
    candidates.keep(np.flatnonzero(logits >= _as_float32(float(np.max(logits)) - n * sigma)))


def _as_float32(bound: float) -> np.float32:
    """Return a bound of logits in their type; one below all of them becomes the lowest."""
    return np.float32(max(bound, float(FLOAT32.min)))


def typical(candidates: Candidates, p: float) -> None:
    """Keep the tokens whose surprise is nearest to the expected one, until their mass is over p.

    A token's surprise is ``-ln p_i``, the expected one is the entropy; the token with which
    the mass exceeds ``p`` is the last to stay.  Source: Meister et al., "Locally Typical
    Sampling", arXiv 2202.00666.
    """
    candidates.close_up()
    weights = candidates.weights()
    distances, entropy = surprises(candidates)
    distances -= np.float32(entropy)
    np.abs(distances, out=distances)
    candidates.keep(_nearest(distances, weights, p), falling=False)


def _nearest(distances: Row, weights: Row, p: float) -> Ids:
    """Return, rising, the positions of the smallest distances whose mass exceeds ``p``.

    Most of a vocabulary is far off and has next to no mass, so that it hardly ever needs more
    than a look; of the rest, only the bin in which the mass exceeds ``p`` is sorted.
    """
    total = float(run_sums(weights).sum())
    if distances.size <= SORTED_AT_ONCE:
        return np.sort(_until(distances, weights, p * total))
    reach = 2 * sum_of_products(distances, weights) / total + 1
    near = np.flatnonzero(distances < np.float32(reach))
    if float(weights[near].sum(dtype=np.float64)) <= p * total:
        near = np.arange(distances.size)
    distances, weights = distances[near], weights[near]
    parts = np.minimum(distances, np.float32(reach)) * np.float32(BINS / reach)
    bins = np.minimum(parts, BINS - 1).astype(np.int64)
    masses = np.cumsum(np.bincount(bins, weights, BINS))
    last = min(int(np.searchsorted(masses, p * total, side="right")), BINS - 1)
    missing = p * total - (float(masses[last - 1]) if last else 0.0)
    unsure = np.flatnonzero(bins == last)
    stays = bins < last
    stays[unsure[_until(distances[unsure], weights[unsure], missing)]] = True
    return np.asarray(near[stays])


def _until(distances: Row, weights: Row, mass: float) -> Ids:
    """Return the positions in the order of their distances, up to where a mass is exceeded."""
    order = np.argsort(distances, kind="stable")
    masses = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(masses, mass, side="right")) + 1]


def xtc(candidates: Candidates, threshold: float, chance: float, probability: float) -> None:
    """Drop all tokens that reach a probability but the least likely of them.

    It happens where ``chance``, uniform in [0, 1), is under ``probability``, and takes two
    tokens of at least ``threshold``.  Source: p-e-w's "exclude top choices" for
    text-generation-webui (pull request 6335).
    """
    candidates.close_up()
    if chance >= probability or threshold > HIGHEST_XTC_THRESHOLD:
        return
    weights = candidates.weights()
    n_above = int(np.count_nonzero(weights >= threshold * run_sums(weights).sum()))
    if n_above > 1:
        dropped = largest(candidates.logits, n_above - 1)
        stays = np.ones(len(candidates), np.bool_)
        stays[dropped] = False
        candidates.keep(np.flatnonzero(stays))
