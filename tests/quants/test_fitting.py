"""Scales that are searched: how small the errors are, and what must not happen to odd blocks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pyrllama.quants import dequantize, quantize, quantize_fitted
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

ERRORS_OF_LLAMA_CPP = {
    TensorType.Q4_0: (0.01162, 0.01015),
    TensorType.Q4_1: (0.008042, 0.005534),
    TensorType.Q5_0: (0.002932, 0.002536),
    TensorType.Q5_1: (0.001926, 0.001293),
    TensorType.Q8_0: (4.666e-05, 4.78e-05),
    TensorType.Q2_K: (0.1128, 0.0637),
    TensorType.Q3_K: (0.03162, 0.02434),
    TensorType.Q4_K: (0.006975, 0.005808),
    TensorType.Q5_K: (0.00178, 0.001529),
    TensorType.Q6_K: (0.0004522, 0.0003751),
    TensorType.IQ4_NL: (0.007795, 0.00669),
    TensorType.IQ4_XS: (0.007952, 0.006904),
    TensorType.TQ1_0: (0.7348, 0.7608),
    TensorType.TQ2_0: (0.7348, 0.7608),
    TensorType.MXFP4: (0.01573, 0.01581),
}
"""What ``ggml_quantize_chunk`` of 2026 leaves of the squares of ``heavy_tailed``: plainly, and
quantised and counted with the importance of columns."""
FITTED = list(ERRORS_OF_LLAMA_CPP)
COLS = 1024


def heavy_tailed() -> tuple[Floats, Floats]:
    """Return numbers with outliers, as weights have, and an importance of columns."""
    rng = np.random.default_rng(7)
    x = rng.standard_t(5, (16, COLS)).astype(np.float32) * 0.03
    return x.astype(np.float32), rng.gamma(0.7, 1.0, COLS).astype(np.float32)


def rounded(type_: TensorType, x: Floats, importance: Floats | None = None) -> Floats:
    return dequantize(type_, quantize_fitted(type_, x, importance), x.shape[1])


def relative(type_: TensorType, x: Floats, importance: Floats | None = None) -> float:
    """Return the squared errors over the squares, weighed by importance."""
    weights = 1.0 if importance is None else importance.astype(np.float64)
    error = (rounded(type_, x, importance) - x).astype(np.float64)
    return float((weights * error**2).sum() / (weights * x.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("type_", FITTED)
def test_errors_are_no_larger_than_those_of_llama_cpp(type_: TensorType) -> None:
    x, importance = heavy_tailed()
    plain, weighed = ERRORS_OF_LLAMA_CPP[type_]
    assert relative(type_, x) <= plain
    assert relative(type_, x, importance) <= weighed


@pytest.mark.parametrize("type_", FITTED)
def test_error_limits(type_: TensorType, data: Path) -> None:
    """The limits of ggml's own test of its quantisations, on the numbers of that test."""
    limits = json.loads((data / "vectors" / "quantisation_error_limits.json").read_text())
    total, product = limits["max_total_error"], limits["max_dot_error"]
    names = {"Q2_K": "q2_K", "Q3_K": "q3_K", "TQ1_0": "tq1_0/tq2_0", "TQ2_0": "tq1_0/tq2_0"}
    dots = {"Q2_K": "q2_K iq2_* iq3_*", "TQ1_0": "tq*", "TQ2_0": "tq*"}
    n = 4096
    x, y = (
        (0.1 + 2 * np.cos(np.arange(n) + offset)).astype(np.float32).reshape(1, n)
        for offset in (0, 1)
    )
    most = total.get(names.get(type_.name), next(iter(total.values())))
    assert np.sqrt(((rounded(type_, x) - x) ** 2).sum()) / n < most
    other = dequantize(TensorType.Q8_0, quantize(TensorType.Q8_0, y), n)
    difference = abs(float(np.vdot(rounded(type_, x), other) - np.vdot(x, y))) / n
    assert difference < product.get(dots.get(type_.name), product["default"])


@pytest.mark.parametrize("type_", FITTED)
def test_zeros_stay_zeros(type_: TensorType) -> None:
    x = np.zeros((2, 512), np.float32)
    x[1] = -0.0
    x[1, 256:] = np.random.default_rng(0).standard_normal(256)
    got = rounded(type_, x)
    assert not got[0].any()
    assert not got[1, :256].any()
    assert got[1, 256:].any()


@pytest.mark.parametrize("type_", FITTED)
@pytest.mark.parametrize("value", [2.5, -2.5, 1e-3, 600.0])
def test_equal_numbers_come_back(type_: TensorType, value: float) -> None:
    x = np.full((1, 256), value, np.float32)
    coarse = {TensorType.MXFP4: 0.25}  # its scales are powers of two
    np.testing.assert_allclose(rounded(type_, x), x, rtol=coarse.get(type_, 0.02))


@pytest.mark.parametrize("type_", FITTED)
@pytest.mark.parametrize("value", [1e-45, -3e-39, 1e-12])
def test_numbers_too_small_for_a_scale_become_zero(type_: TensorType, value: float) -> None:
    got = rounded(type_, np.full((1, 256), value, np.float32))
    assert np.abs(got).max() <= 2 * abs(value)


@pytest.mark.parametrize("type_", FITTED)
def test_a_single_number_in_a_block_comes_back(type_: TensorType) -> None:
    x = np.zeros((2, 256), np.float32)
    x[0, 17], x[1, 200] = 3.0, -3.0
    got = rounded(type_, x)
    np.testing.assert_allclose(got[x != 0], x[x != 0], rtol=0.05)
    # IQ4 has no level at zero, and an offset is rounded: the others come near zero.
    assert np.abs(got[x == 0]).max() < 0.01 * 3.0


@pytest.mark.parametrize("type_", [TensorType.TQ1_0, TensorType.TQ2_0])
def test_ternary_numbers_are_exact(type_: TensorType) -> None:
    x = np.random.default_rng(3).choice([-0.75, 0.0, 0.75], (5, 512)).astype(np.float32)
    np.testing.assert_array_equal(rounded(type_, x), x)


@pytest.mark.parametrize("type_", FITTED)
def test_what_a_type_holds_exactly_costs_next_to_nothing_again(type_: TensorType) -> None:
    x, _ = heavy_tailed()
    once = rounded(type_, x)
    lost = float(((rounded(type_, once) - once) ** 2).sum() / ((once - x) ** 2).sum())
    assert lost < 0.35


@pytest.mark.parametrize("type_", FITTED)
def test_important_columns_have_smaller_errors(type_: TensorType) -> None:
    x, _ = heavy_tailed()
    importance = np.full(COLS, 1e-3, np.float32)
    importance[::32] = 1.0
    plain = np.abs(rounded(type_, x) - x)[:, ::32].mean()
    weighed = np.abs(rounded(type_, x, importance) - x)[:, ::32].mean()
    assert weighed < (1.01 if type_ is TensorType.MXFP4 else 0.97) * plain


@pytest.mark.parametrize("type_", FITTED)
def test_equal_importance_of_any_size_changes_nothing(type_: TensorType) -> None:
    x, _ = heavy_tailed()
    for size in (1.0, 2.0**-20, 2.0**20):
        equal = np.full(COLS, size, np.float32)
        np.testing.assert_array_equal(quantize_fitted(type_, x, equal), quantize_fitted(type_, x))


@pytest.mark.parametrize("type_", FITTED)
def test_slices_do_not_show(type_: TensorType) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((5, 1 << 14)).astype(np.float32)
    importance = rng.random(1 << 14, np.float32)
    whole = quantize_fitted(type_, x, importance)
    for row in (0, 2, 4):
        part = quantize_fitted(type_, x[row : row + 1], importance)
        np.testing.assert_array_equal(whole[row : row + 1], part)


@pytest.mark.parametrize("type_", [TensorType.F32, TensorType.F16, TensorType.BF16])
def test_types_without_scales_are_rounded(type_: TensorType) -> None:
    x, importance = heavy_tailed()
    np.testing.assert_array_equal(quantize_fitted(type_, x, importance), quantize(type_, x))


@pytest.mark.parametrize("type_", [TensorType.Q4_0, TensorType.Q8_0])
def test_searching_beats_the_plain_rule(type_: TensorType) -> None:
    x, _ = heavy_tailed()
    plain = dequantize(type_, quantize(type_, x), COLS)
    assert relative(type_, x) < float(((plain - x) ** 2).sum() / (x**2).sum())
