"""Each operation of the reference against its definition, written out entry by entry."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pyrllama.reference import ops

if TYPE_CHECKING:
    from numpy.typing import NDArray


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    weight = np.array([1.0, 2.0], np.float32)
    root = math.sqrt(12.5 + 0.5)
    normed = ops.rms_norm(x, weight, eps=0.5)
    assert normed.dtype == np.float32
    np.testing.assert_allclose(normed, [[3 / root, 8 / root], [0.0, 0.0]], rtol=1e-6)


def test_rope_turns_neighbouring_pairs() -> None:
    x = random(3, 2, 4)
    angles = np.array([[0.0, 0.0], [0.5, 0.1], [1.0, 0.2]])
    turned = ops.rope(x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    for token, head, pair in np.ndindex(3, 2, 2):
        before = complex(*x[token, head, 2 * pair : 2 * pair + 2])
        after = before * np.exp(1j * angles[token, pair])
        got = complex(*turned[token, head, 2 * pair : 2 * pair + 2])
        assert got == pytest.approx(after, abs=1e-6)


def test_rope_leaves_scores_to_the_distance_of_positions() -> None:
    q, k = random(1, 1, 8, seed=1), random(1, 1, 8, seed=2)
    frequencies = np.array([1.0, 0.3, 0.1, 0.01])

    def score(q_position: int, k_position: int) -> float:
        turned = [
            ops.rope(x, np.cos(angles), np.sin(angles))
            for x, angles in (
                (q, (q_position * frequencies[None]).astype(np.float32)),
                (k, (k_position * frequencies[None]).astype(np.float32)),
            )
        ]
        return float(np.vdot(turned[0], turned[1]))

    assert score(7, 3) == pytest.approx(score(25, 21), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)


def test_softmax_is_stable_and_gives_nothing_to_minus_infinity() -> None:
    x = np.array([[1000.0, 1000.0, -np.inf], [0.0, math.log(3), -np.inf]], np.float32)
    np.testing.assert_allclose(ops.softmax(x), [[0.5, 0.5, 0], [0.25, 0.75, 0]], rtol=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("first_position", [0, 5])
def test_attention_equals_its_definition_loop_by_loop(kv_heads: int, first_position: int) -> None:
    n_tokens, heads, d = 3, 4, 6
    q = random(n_tokens, heads, d, seed=1)
    k = random(first_position + n_tokens, kv_heads, d, seed=2)
    v = random(first_position + n_tokens, kv_heads, d, seed=3)
    got = ops.attention(q, k, v, first_position)
    assert got.shape == q.shape
    assert got.dtype == np.float32
    for token, head in np.ndindex(n_tokens, heads):
        shared = head * kv_heads // heads
        seen = range(first_position + token + 1)
        scores = [
            sum(float(q[token, head, i]) * float(k[p, shared, i]) for i in range(d)) / math.sqrt(d)
            for p in seen
        ]
        total = sum(math.exp(score) for score in scores)
        for i in range(d):
            expected = sum(math.exp(scores[p]) / total * float(v[p, shared, i]) for p in seen)
            assert got[token, head, i] == pytest.approx(expected, abs=1e-6)


def test_swiglu_equals_its_definition_also_where_the_exponential_overflows() -> None:
    gate = np.array([-200.0, -1.0, 0.0, 2.0, 200.0], np.float32)
    up = np.array([3.0, 2.0, 5.0, -1.0, 0.5], np.float32)
    expected = [0.0, -2 / (1 + math.e), 0.0, -2 / (1 + math.exp(-2)), 100.0]
    np.testing.assert_allclose(ops.swiglu(gate, up), expected, rtol=1e-6)


def test_matmul_has_a_row_of_weights_for_every_output() -> None:
    x = np.array([[1.0, 2.0]], np.float32)
    w = np.array([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], np.float32)
    np.testing.assert_array_equal(ops.matmul(x, w), [[11.0, 17.0, 23.0]])


def test_quantized_activations_use_the_whole_of_int8() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, :4] = [-2.0, 2.0, 1.0, 0.01]
    x[0, 32:35] = [127.0, 2.5, 3.5]
    q, scale = ops.quantize_activations(x)
    assert q.dtype == np.int8
    assert scale.dtype == np.float32
    assert q[0, :4].tolist() == [-127, 127, 64, 1]  # 63.5 and 0.635
    assert q[0, 32:35].tolist() == [127, 2, 4]  # halves go to even
    np.testing.assert_array_equal(scale, np.array([[2 / 127, 1]], np.float32))


def test_quantized_activations_are_within_half_a_step() -> None:
    x = random(5, 96)
    q, scale = ops.quantize_activations(x)
    assert q.shape == (5, 96)
    assert scale.shape == (5, 3)
    steps = np.repeat(scale, 32, axis=1)
    assert np.all(np.abs(q * steps - x) <= 0.5001 * steps)


@pytest.mark.parametrize("value", [0.0, 1e-44, -1e-38])
def test_quantized_activations_of_nothing_are_zeros(value: float) -> None:
    q, scale = ops.quantize_activations(np.full((1, 32), value, np.float32))
    assert not q.any()
    assert scale.tolist() == [[0.0]]


def test_matmul_int8_rounds_the_activations_and_nothing_else() -> None:
    x, w = random(2, 64, seed=1), random(3, 64, seed=2)
    q, scale = ops.quantize_activations(x)
    blocks = np.einsum("nbi,rbi->nrb", q.reshape(2, 2, 32).astype(float), w.reshape(3, 2, 32))
    expected = np.einsum("nrb,nb->nr", blocks, scale.astype(float))
    np.testing.assert_allclose(ops.matmul_int8(x, w), expected, atol=1e-5)
    assert not np.allclose(ops.matmul_int8(x, w), ops.matmul(x, w), atol=1e-4)
