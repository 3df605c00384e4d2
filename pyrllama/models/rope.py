"""RoPE frequencies and their stretching over longer contexts, in all forms that models have.

Formulas agree with ``modeling_rope_utils.py`` of huggingface/transformers, which is what
models' ``rope_scaling`` means.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, assert_never

import numpy as np

from pyrllama.errors import TensorError
from pyrllama.model_config import DynamicRope, LinearRope, Llama3Rope, YarnRope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig, RopeScaling

    Frequencies = NDArray[np.float64]

LARGEST = 2.0**40
"""Far over every constant of a scaling, and its inverse far under: beyond lies what overflows."""
ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the RoPE frequencies, as GGUF stores Llama 3.1's scaling."""


def rope_frequencies(
    config: ModelConfig, factors: NDArray[np.float32] | None = None, context: int = 0
) -> Frequencies:
    """Return by how many radians a position turns each pair: ``(head_dim / 2,)``.

    Pair ``i`` turns by ``theta^(-2i / head_dim)`` (RoFormer, arXiv 2104.09864), divided by
    GGUF's stored ``factors`` or, where there are none, stretched as ``config.rope_scaling``
    says; its dynamic form depends on the ``context``, in tokens.  Raises ``TensorError`` for
    factors that are not finite numbers over 0.
    """
    plain = _plain(config.rope_theta, config.head_dim)
    if factors is None:
        return _stretched(plain, config, context)
    divisors = np.asarray(factors, np.float64)
    if divisors.shape != plain.shape or not np.all((divisors > 0) & np.isfinite(divisors)):
        raise TensorError(ROPE_FACTORS, f"does not hold {plain.size} finite numbers over 0")
    return np.asarray(plain / divisors)


def rope_table(
    config: ModelConfig,
    n_positions: int,
    factors: NDArray[np.float32] | None = None,
    context: int | None = None,
) -> NDArray[np.float32]:
    """Return cosine and sine of every position's angles: ``(positions, head_dim / 2, 2)``.

    ``context`` is the length that dynamic scaling is made for, by default ``n_positions``.
    Angles are computed in float64: at position 100,000 float32 would lose three digits.
    """
    positions = np.arange(n_positions, dtype=np.float64)
    frequencies = rope_frequencies(config, factors, n_positions if context is None else context)
    angles = np.outer(positions, frequencies)
    table = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    if isinstance(config.rope_scaling, YarnRope):
        table *= config.rope_scaling.attention_factor
    return table.astype(np.float32)


def default_attention_factor(factor: float) -> float:
    """Return by what YaRN multiplies cosines and sines unless a model says otherwise."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def scaling_problems(scaling: RopeScaling, theta: float) -> Iterator[str]:
    """Yield what cannot be of the scaling of a base's frequencies, each with the key."""
    for name, value in dataclasses.asdict(scaling).items():
        if name not in {"kind", "truncate"} and not 1.0 / LARGEST < value < LARGEST:
            yield (
                f"rope_scaling.{name} is {value}, but it must be a finite number over 0, and "
                f"neither it nor its inverse may reach 2^40"
            )
    match scaling:
        case Llama3Rope(low_freq_factor=low, high_freq_factor=high) if not low < high:
            yield "rope_scaling.low_freq_factor is not under rope_scaling.high_freq_factor"
        case YarnRope(beta_slow=slow, beta_fast=fast):
            if not slow < fast:
                yield "rope_scaling.beta_slow is not under rope_scaling.beta_fast"
            if theta <= 1.0:
                yield f"rope_theta is {theta}, but rope_scaling of the kind yarn needs one over 1"


def _plain(theta: float, head_dim: int) -> Frequencies:
    pairs = np.arange(0, head_dim, 2, dtype=np.float64)
    return np.asarray(theta ** (-pairs / head_dim))


def _stretched(plain: Frequencies, config: ModelConfig, context: int) -> Frequencies:
    match config.rope_scaling:
        case None:
            return plain
        case LinearRope(factor=factor):
            return np.asarray(plain / factor)
        case Llama3Rope() as scaling:
            return _by_turns(plain, scaling)
        case DynamicRope() as scaling:
            return _with_larger_base(scaling, config, context)
        case YarnRope() as scaling:
            return _ramped(plain, scaling, config)
        case other:
            assert_never(other)


def _by_turns(plain: Frequencies, scaling: Llama3Rope) -> Frequencies:
    """Apply Llama 3.1's scaling: slow pairs ``factor`` times slower, fast ones as they were.

    In between, the two are blended by how many turns a pair makes over the original context.
    """
    turns = scaling.original_context * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return np.asarray(plain * (kept + (1.0 - kept) / scaling.factor))


def _with_larger_base(scaling: DynamicRope, config: ModelConfig, context: int) -> Frequencies:
    """Apply dynamic NTK scaling for a context of a length."""
    longer = max(context, scaling.original_context) / scaling.original_context
    growth = scaling.factor * longer - (scaling.factor - 1.0)
    # The exponent's divisor is 0 for heads of one pair, whose frequency is 1 with any base.
    base = config.rope_theta * growth ** (config.head_dim / max(config.head_dim - 2, 1))
    return _plain(base, config.head_dim)


def _ramped(plain: Frequencies, scaling: YarnRope, config: ModelConfig) -> Frequencies:
    """Apply YaRN: the first pairs are kept, the last interpolated, a linear ramp is between."""
    first, last = (
        _pair_of_turns(turns, scaling, config) for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        first, last = float(math.floor(first)), float(math.ceil(last))
    first, last = max(first, 0.0), min(last, config.head_dim - 1.0)
    if first == last:
        last += 0.001
    ramp = np.clip((np.arange(plain.size) - first) / (last - first), 0.0, 1.0)
    return np.asarray(plain * (1.0 - ramp) + plain / scaling.factor * ramp)


def _pair_of_turns(turns: float, scaling: YarnRope, config: ModelConfig) -> float:
    """Return which pair, as a real number, makes so many turns over the original context."""
    wavelength = scaling.original_context / (turns * 2 * math.pi)
    return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))
