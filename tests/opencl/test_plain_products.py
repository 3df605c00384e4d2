"""The products of decoding and the embedding, for the plain types: rows that are no whole tiles."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.opencl_kernels import MatrixKernels
from support.opencl_models import QUANTISED, each_type
from support.tiny_models import tiny_config

from pyrllama.quants import dequantize, quantize
from pyrllama.reference import ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pyrllama.opencl.device import Device
    from pyrllama.tensors import TensorType

    Floats = NDArray[np.float32]
    OfKind = Callable[[TensorType], MatrixKernels]

ROWS = 37
EPS = 1e-5


@pytest.fixture(scope="module")
def of_kind(device: Device) -> OfKind:
    return cache(lambda kind: MatrixKernels(device, tiny_config(), {kind}))


def stored_and_numbers(
    kind: TensorType, n_rows: int, cols: int
) -> tuple[NDArray[np.uint8], Floats]:
    numbers = np.random.default_rng(n_rows).normal(0, 0.2, (n_rows, cols)).astype(np.float32)
    rows = quantize(kind, numbers)
    return rows, dequantize(kind, rows, cols)


def columns_of(kind: TensorType) -> int:
    """Return columns that end within a block, where a type can have such rows."""
    return 96 if kind in QUANTISED else 84


def activations(cols: int) -> tuple[Floats, Floats]:
    """Return a row, and the same padded with zeros to whole blocks."""
    x = np.random.default_rng(cols).normal(0, 1, cols).astype(np.float32)
    return x, np.pad(x, (0, -cols % 32))


def multiplied(kind: TensorType, x: Floats, weights: Floats) -> Floats:
    matmul = ops.matmul_int8 if kind in QUANTISED else ops.matmul
    product: Floats = matmul(x[None], weights)[0]
    return product


def check(found: Floats, expected: Floats) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=2e-5)


@each_type
def test_embedding(of_kind: OfKind, kind: TensorType) -> None:
    cols = columns_of(kind)
    rows, numbers = stored_and_numbers(kind, 40, cols)
    embedded = of_kind(kind).embedded(kind, rows, cols)
    np.testing.assert_array_equal(embedded[:, :cols], numbers)
    assert not embedded[:, cols:].any()


@each_type
def test_product_of_a_sum(of_kind: OfKind, kind: TensorType) -> None:
    cols = columns_of(kind)
    rows, numbers = stored_and_numbers(kind, ROWS, cols)
    x, padded = activations(cols)
    check(
        of_kind(kind).product("add_product", kind, rows, cols, padded),
        multiplied(kind, x, numbers),
    )


@each_type
def test_product_behind_a_norm(of_kind: OfKind, kind: TensorType) -> None:
    """The factor of the norm comes after the product, so int8 activations are those before it."""
    cols = columns_of(kind)
    rows, numbers = stored_and_numbers(kind, ROWS, cols)
    x, padded = activations(cols)
    weight = np.random.default_rng(1).uniform(0.5, 1.5, padded.size).astype(np.float32)
    norm = padded, weight, cols, EPS
    factor = 1 / np.sqrt(np.mean(x * x) + EPS)
    expected = multiplied(kind, x * weight[:cols], numbers) * factor
    check(of_kind(kind).product("norm_product", kind, rows, cols, *norm), expected)


@each_type
def test_gates_and_ups(of_kind: OfKind, kind: TensorType) -> None:
    cols = columns_of(kind)
    rows, numbers = stored_and_numbers(kind, 2 * ROWS, cols)
    x, padded = activations(cols)
    ones = np.ones(padded.size, np.float32)
    factor = np.float32(1 / np.sqrt(np.mean(x * x) + EPS))
    gate, up = (multiplied(kind, x, half) * factor for half in np.split(numbers, 2))
    found = of_kind(kind).product("swiglu_product", kind, rows, cols, padded, ones, cols, EPS)
    check(found[:ROWS], ops.swiglu(gate, up))
    assert not found[ROWS:].any()


@each_type
def test_product_of_what_attention_gathered(of_kind: OfKind, kind: TensorType) -> None:
    """Splits are joined by the powers of two to their greatest scores; one may be empty."""
    kernels = of_kind(kind)
    config, splits = kernels.config, kernels.tuning.splits
    random = np.random.default_rng(2)
    parts = random.normal(0, 1, (splits, config.q_dim)).astype(np.float32)
    tops = random.normal(0, 2, (splits, config.n_heads)).astype(np.float32)
    tops[0, 1] = -np.inf
    sums = random.uniform(1, 9, tops.shape).astype(np.float32)
    rows, numbers = stored_and_numbers(kind, ROWS, config.q_dim)
    powers = np.exp2(tops - tops.max(axis=0))
    by_head = parts.reshape(splits, config.n_heads, -1)
    joined = np.einsum("shd,sh->hd", by_head, powers) / np.sum(powers * sums, axis=0)[:, None]
    shares = np.stack([tops, sums], axis=-1)
    check(
        kernels.product("attended_product", kind, rows, config.q_dim, parts, shares),
        multiplied(kind, joined.reshape(-1), numbers),
    )
