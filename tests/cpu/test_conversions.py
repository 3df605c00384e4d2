"""Kernels that convert rows between storage types, bit for bit against NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.kernels import TYPES, Guarded, call, column_counts, each_isa, random_stored

from pyrllama import quants
from pyrllama.cpu.weights import codebook_levels
from pyrllama.quants import codebook
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.cpu.target import Isa

COLS = 32
CONVERTED = (TensorType.Q8_0, TensorType.Q4_0)
HALVES = np.arange(1 << 16, dtype=np.uint16)
"""The bits of every float16."""
MAX_HALF, MIN_NORMAL_HALF, MIN_HALF = 65504.0, 2.0**-14, 2.0**-24

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def convert(kernel: str, isa: Isa, source: NDArray[np.generic], n_bytes: int) -> NDArray[np.uint8]:
    """Run a row conversion over ``(rows, ...)`` at odd addresses; ``n_bytes`` a result row."""
    rows = np.ascontiguousarray(source).view(np.uint8).reshape(len(source), -1)
    a = Guarded(rows.shape, np.uint8, misaligned=2)
    b = Guarded((len(rows), n_bytes), np.uint8, misaligned=6)
    a.array[...] = rows
    n_cols = source.shape[1] if source.dtype == np.float32 else n_bytes // 4
    for row in range(len(rows)):
        call(kernel, isa, a.address + row * rows.shape[1], b.address + row * n_bytes, n_cols)
    a.check()
    b.check()
    np.testing.assert_array_equal(a.array, rows, "the source was changed")
    return b.array.copy()


def quantised(kind: TensorType, isa: Isa, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Store rows of values by the kernel."""
    n_bytes = quants.row_bytes(kind, values.shape[1])
    return convert(f"conversions.quantise_{kind.name.lower()}", isa, values, n_bytes)


def dequantised(kind: TensorType, isa: Isa, stored: NDArray[np.uint8], cols: int) -> Array:
    """Read stored rows by the kernel."""
    rows = codebook_levels(stored, kind) if kind in codebook.LEVELS else stored
    kernel = f"conversions.dequantise_{kind.name.lower()}"
    return convert(kernel, isa, rows, 4 * cols).view("<f4")


def as_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values as rows of whole blocks, the last one filled up with its first value."""
    missing = -len(values) % COLS
    return np.concatenate([values, np.full(missing, values[0], np.float32)]).reshape(-1, COLS)


# --- float16 and bfloat16 ---------------------------------------------------------------------


@each_isa
def test_every_float16_widens_to_its_own_value(isa: Isa) -> None:
    stored = HALVES.view(np.uint8).reshape(16, -1)
    got = dequantised(TensorType.F16, isa, stored, 1 << 12).reshape(-1)
    expected = HALVES.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@each_isa
def test_every_float16_comes_back_from_float32(isa: Isa) -> None:
    halves = HALVES[~np.isnan(HALVES.view(np.float16))]
    values = as_rows(halves.view(np.float16).astype(np.float32))
    stored = quantised(TensorType.F16, isa, values).view(np.uint16).reshape(-1)
    np.testing.assert_array_equal(stored[: len(halves)], halves)


def float16_cases() -> dict[str, NDArray[np.float32]]:
    """Return float32 values whose rounding to float16 is of every kind."""
    rng = np.random.default_rng(5)
    positive = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = (positive[:-1] + positive[1:]) / 2  # exact: ties between neighbours
    middles = middles.astype(np.float32)
    return {
        "random bits": rng.integers(0, 1 << 32, 1 << 15, dtype=np.uint32).view(np.float32),
        "normal": rng.normal(0, 1, 4096).astype(np.float32),
        "denormal halves": rng.uniform(-MIN_NORMAL_HALF, MIN_NORMAL_HALF, 4096).astype(np.float32),
        "tiny": rng.uniform(-2 * MIN_HALF, 2 * MIN_HALF, 4096).astype(np.float32),
        "denormal floats": np.arange(1, 4096, dtype=np.uint32).view(np.float32),
        "huge": rng.uniform(-2 * MAX_HALF, 2 * MAX_HALF, 4096).astype(np.float32),
        "ties": np.concatenate([middles, -middles]),
        "beside ties": np.concatenate(
            [np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(0))]
        ),
        "edges": np.array(
            [0.0, -0.0, np.inf, -np.inf, np.nan, MAX_HALF, 65519.996, 65520.0, MIN_NORMAL_HALF,
             MIN_HALF, MIN_HALF / 2, 1.5 * MIN_HALF, np.finfo(np.float32).max, 1e-45],
            np.float32,
        ),
    }  # fmt: skip


@each_isa
@pytest.mark.parametrize("case", float16_cases())
def test_float16_rounds_to_nearest_even(isa: Isa, case: str) -> None:
    values = as_rows(float16_cases()[case])
    got = quantised(TensorType.F16, isa, values).view(np.float16)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint16), expected[~nan].view(np.uint16))


@each_isa
def test_every_bfloat16_widens_to_the_upper_half_of_a_float32(isa: Isa) -> None:
    stored = HALVES.view(np.uint8).reshape(16, -1)
    got = dequantised(TensorType.BF16, isa, stored, 1 << 12).reshape(-1)
    np.testing.assert_array_equal(got.view(np.uint32), HALVES.astype(np.uint32) << 16)


@each_isa
def test_bfloat16_rounds_finite_numbers_to_nearest_even(isa: Isa) -> None:
    rng = np.random.default_rng(6)
    bits = rng.integers(0, 1 << 32, 1 << 15, dtype=np.uint32)
    ties = (HALVES.astype(np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, ties, ties - 1, ties + 1]).view(np.float32)
    values = as_rows(values[np.isfinite(values)])
    expected = quants.quantize(TensorType.BF16, values)
    np.testing.assert_array_equal(quantised(TensorType.BF16, isa, values), expected)


# --- blocks -----------------------------------------------------------------------------------


def block_cases() -> dict[str, NDArray[np.float32]]:
    """Return rows of blocks that quantise in every way: ``(rows, multiple of 32)`` float32."""
    rng = np.random.default_rng(7)
    ties = np.zeros((8, COLS), np.float32)  # a scale of exactly 1: halves are ties
    ties[:] = np.arange(COLS) - 15.5
    ties[:4, 0], ties[4:, 0] = 127, -127
    eighths = ties.copy()  # the farthest is 8: Q4_0's scale is exactly 1
    eighths[:] = (np.arange(COLS) - 16) / 2
    one = np.zeros((COLS, COLS), np.float32)
    np.fill_diagonal(one, rng.normal(0, 1, COLS))
    opposite = rng.normal(0, 0.1, (16, COLS)).astype(np.float32)
    opposite[:8, [3, 20]] = [2.0, -2.0]
    opposite[8:, [3, 20]] = [-2.0, 2.0]
    minus_zero = np.zeros((2, COLS), np.float32)
    minus_zero[0] = -0.0
    minus_zero[1, ::2] = -0.0
    return {
        "random": rng.normal(0, 0.02, (64, 4 * COLS)).astype(np.float32),
        "negative": -rng.uniform(0.1, 1.0, (16, COLS)).astype(np.float32),
        "zeros": np.zeros((2, 2 * COLS), np.float32),
        "minus zeros": minus_zero,
        "ties of Q8_0": ties,
        "ties of Q4_0": eighths,
        "just beside a half": np.nextafter(ties, np.float32(0)),
        "one number": one,
        "opposite extremes": opposite,
        "tiny": rng.normal(0, 1e-9, (16, COLS)).astype(np.float32),
        "denormal scales": rng.normal(0, 1e-6, (16, COLS)).astype(np.float32),
        "huge": rng.normal(0, 1e5, (16, COLS)).astype(np.float32),
        "spread": np.exp(rng.uniform(-20, 5, (32, COLS))).astype(np.float32),
        "scale without a finite inverse": rng.normal(0, 1e-38, (16, COLS)).astype(np.float32),
        "denormal floats": rng.integers(1, 99, (4, COLS), dtype=np.uint32).view(np.float32),
    }


@each_isa
@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("case", block_cases())
def test_blocks_quantise_as_numpy_does(isa: Isa, kind: TensorType, case: str) -> None:
    values = block_cases()[case]
    expected = quants.quantize(kind, values)
    np.testing.assert_array_equal(quantised(kind, isa, values), expected)


@each_isa
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_rows_dequantise_as_numpy_does(isa: Isa, kind: TensorType) -> None:
    cols = column_counts(kind, (COLS, 5 * COLS))[-1]
    stored = random_stored(kind, 20, cols, 8)
    expected = quants.dequantize(kind, stored, cols)
    np.testing.assert_array_equal(dequantised(kind, isa, stored, cols), expected)


@each_isa
@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.name)
def test_every_byte_of_a_block_means_what_numpy_says(isa: Isa, kind: TensorType) -> None:
    n_bytes = quants.type_size(kind)
    stored = np.zeros((256, n_bytes), np.uint8)
    stored[:, :2] = np.float16(0.5).reshape(1).view(np.uint8)
    stored[:, 2:] = np.arange(256, dtype=np.uint8)[:, None] + np.arange(n_bytes - 2, dtype=np.uint8)
    expected = quants.dequantize(kind, stored, COLS)
    np.testing.assert_array_equal(dequantised(kind, isa, stored, COLS), expected)


@each_isa
def test_float32_rows_are_copied(isa: Isa) -> None:
    bits = np.random.default_rng(9).integers(0, 1 << 32, (3, COLS), dtype=np.uint32)
    values = bits.view(np.float32)
    for kernel in ("conversions.quantise_f32", "conversions.dequantise_f32"):
        got = convert(kernel, isa, values, 4 * COLS)
        np.testing.assert_array_equal(got.view(np.uint32), bits)
