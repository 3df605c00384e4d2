"""RoPE's scaling: what each form leaves, slows, and multiplies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.tiny_models import tiny_config

from pyrllama.model_config import DynamicRope, LinearRope, RopeScaling, YarnRope
from pyrllama.models.rope import default_attention_factor, rope_frequencies, rope_table

PLAIN = tiny_config(head_dim=16)


def share(scaling: RopeScaling, context: int = 0) -> list[float]:
    """Return how fast each pair turns, as a share of what it does without scaling."""
    scaled = tiny_config(head_dim=16, rope_scaling=scaling)
    shares = rope_frequencies(scaled, context=context) / rope_frequencies(PLAIN)
    return [float(share) for share in shares]


def test_linear_scaling_slows_all_pairs() -> None:
    assert share(LinearRope(4.0)) == pytest.approx([0.25] * 8)


def test_dynamic_scaling_begins_behind_the_original_context() -> None:
    scaling = DynamicRope(2.0, 64)
    assert share(scaling) == share(scaling, context=64) == pytest.approx([1.0] * 8)
    growth = 2.0 * 256 / 64 - 1.0
    base = 10000.0 * growth ** (16 / 14)
    expected = [(base / 10000.0) ** (-2 * i / 16) for i in range(8)]
    assert share(scaling, context=256) == pytest.approx(expected)


def test_dynamic_scaling_is_made_for_the_length_of_the_table() -> None:
    config = tiny_config(head_dim=16, rope_scaling=DynamicRope(2.0, 64))
    np.testing.assert_array_equal(rope_table(config, 300)[:200], rope_table(config, 200, None, 300))
    assert np.abs(rope_table(config, 300)[:200] - rope_table(config, 200)).max() > 0.1


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones() -> None:
    def pair(turns: float) -> float:
        return 16 * math.log(2048 / (turns * 2 * math.pi)) / (2 * math.log(10000.0))

    first, last = math.floor(pair(32)), math.ceil(pair(1))
    assert (first, last) == (2, 6)
    ramp = [min(max((i - first) / (last - first), 0.0), 1.0) for i in range(8)]
    expected = [1 - r + r / 4 for r in ramp]
    assert share(YarnRope(4.0, 2048, 1.0)) == pytest.approx(expected)
    real = share(YarnRope(4.0, 2048, 1.0, truncate=False))
    ramp = [min(max((i - pair(32)) / (pair(1) - pair(32)), 0.0), 1.0) for i in range(8)]
    assert real == pytest.approx([1 - r + r / 4 for r in ramp])


def test_yarn_multiplies_cosines_and_sines() -> None:
    one = tiny_config(rope_scaling=YarnRope(4.0, 64, 1.0))
    more = tiny_config(rope_scaling=YarnRope(4.0, 64, 1.25))
    np.testing.assert_allclose(rope_table(more, 50), 1.25 * rope_table(one, 50), rtol=1e-6)


@pytest.mark.parametrize(("factor", "expected"), [(0.5, 1.0), (1.0, 1.0), (math.e, 1.1)])
def test_the_usual_attention_factor(factor: float, expected: float) -> None:
    assert default_attention_factor(factor) == pytest.approx(expected)
