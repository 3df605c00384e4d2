"""Matrix products of every type against the reference, and what must not change a bit of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import (
    QUANTISED,
    TYPES,
    UNQUANTISED,
    Product,
    activation_block,
    alike_bytes,
    column_counts,
    each_isa,
    pack,
    random_stored,
    rounded,
    stored_product,
    with_scales_of_one,
)

from pyrllama import quants
from pyrllama.cpu.records import FEW_SIXES, GROUPS_AT_ONCE, PANEL_BLOCKS, SIXES_AT_ONCE
from pyrllama.cpu.target import GENERIC, Isa
from pyrllama.reference import ops
from pyrllama.tensors import TensorType

ROWS = (1, 16, 17, 48, 100)
COLS = (32, 64, 96, 352)
N_TOKENS = (1, 2, 5, 6, 7, 13)
FLOAT_ROUNDING = 1e-6
"""Of the sum of the magnitudes that a result adds up: some float32 roundings of 6e-8 each."""
TINY = 1e-30
"""Added to magnitudes: rows of scales that are all zero have none."""
CONVERTED = (TensorType.Q8_0, TensorType.Q4_0)
each_quantised = pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]


def random(rows: int, cols: int, seed: int, std: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(0, std, (rows, cols)).astype(np.float32)


def exact(x: Array | Doubles, w: Array) -> tuple[Doubles, Doubles]:
    """Return the products in float64, and the sums of magnitudes that bound their rounding."""
    a, b = x.astype(np.float64), w.astype(np.float64)
    return a @ b.T, np.abs(a) @ np.abs(b).T


def some_product(kind: TensorType, rows: int, n_tokens: int, isa: Isa, cols: int = 64) -> Product:
    """Return the product of random stored rows and random activations."""
    cols = column_counts(kind, (cols, cols))[-1]
    return stored_product(random_stored(kind, rows, cols, 4), kind, random(n_tokens, cols, 5), isa)


def as_int8(x: Array, kind: TensorType) -> Doubles:
    """Return what products of a type take for activations."""
    block = activation_block(kind)
    q, scales = ops.quantize_activations(x, block)
    columns = np.repeat(scales.astype(np.float64), block, axis=1)
    return np.asarray(q.astype(np.float64) * columns)


def assert_close(got: Array, x: Array | Doubles, w: Array) -> None:
    expected, magnitudes = exact(x, w)
    assert got.shape == expected.shape
    error = np.max(np.abs(got - expected) / (magnitudes + TINY))
    assert error < FLOAT_ROUNDING, f"{error:.1e} of the sum of magnitudes"


# --- against the reference --------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("kind", UNQUANTISED, ids=lambda kind: kind.name)
def test_float_products_equal_the_reference(isa: Isa, kind: TensorType) -> None:
    for rows in ROWS:
        for cols in (1, 7, 33, *COLS):
            w, x = random(rows, cols, rows), random(max(N_TOKENS), cols, cols)
            stored = rounded(w, kind)
            got = Product(pack(w, kind, isa), x, isa).run()
            assert_close(got[:, :rows], x, stored)
            np.testing.assert_allclose(
                got[:, :rows], ops.matmul(x, stored), atol=4e-6 * np.sqrt(cols), rtol=1e-5
            )
            assert not got[:, rows:].any(), "rows of padding"


@each_isa
@each_quantised
def test_quantised_products_equal_the_reference(isa: Isa, kind: TensorType) -> None:
    for rows in ROWS:
        for cols in column_counts(kind, COLS)[-2:] if rows > 1 else column_counts(kind, COLS):
            stored = random_stored(kind, rows, cols, rows + cols)
            w, x = quants.dequantize(kind, stored, cols), random(max(N_TOKENS), cols, cols)
            got = stored_product(stored, kind, x, isa).run()
            assert_close(got[:, :rows], as_int8(x, kind), w)
            assert not got[:, rows:].any(), "rows of padding"


@each_isa
@each_type
def test_products_add_onto_what_is_there(isa: Isa, kind: TensorType) -> None:
    product = some_product(kind, 48, 5, isa)
    plain, onto = product.run(), random(5, 48, 3)
    np.testing.assert_array_equal(product.run(onto=onto), onto + plain)


@each_isa
@each_type
def test_products_of_nothing_are_nothing(isa: Isa, kind: TensorType) -> None:
    (cols,) = column_counts(kind, (64,))
    stored = random_stored(kind, 17, cols, 1)
    assert not stored_product(stored, kind, np.zeros((5, cols), np.float32), isa).run().any()
    if kind in (*UNQUANTISED, *CONVERTED):
        nothing = pack(np.zeros((17, 64), np.float32), kind, isa)
        assert not Product(nothing, random(5, 64, 2), isa).run().any()


# --- bit for bit ------------------------------------------------------------------------------


@each_isa
@each_type
@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_rows_in_a_batch_equal_rows_alone(isa: Isa, kind: TensorType, n_tokens: int) -> None:
    for rows, cols in ((17, 32), (100, 352)):
        product = some_product(kind, rows, n_tokens, isa, cols)
        together = product.run()
        np.testing.assert_array_equal(together, product.run_rows())


@each_isa
@each_quantised
@pytest.mark.parametrize("n_tokens", [5, 6 * FEW_SIXES + 1, 6 * FEW_SIXES + 4])
def test_columns_in_parts_equal_the_whole(isa: Isa, kind: TensorType, n_tokens: int) -> None:
    # Two whole parts, and less than one.
    cols = 2 * 32 * PANEL_BLOCKS + max(quants.block_size(kind), 32)
    stored, x = random_stored(kind, 81, cols, 4), random(n_tokens, cols, 5)
    product, onto = stored_product(stored, kind, x, isa), random(n_tokens, 96, 6)
    alone = product.run_rows()
    np.testing.assert_array_equal(product.run(), alone)
    np.testing.assert_array_equal(product.run(pieces=(2,), onto=onto), onto + alone)


@each_isa
@each_quantised
def test_more_rows_and_groups_than_meet_at_once_equal_the_whole(isa: Isa, kind: TensorType) -> None:
    n_tokens, rows = 6 * SIXES_AT_ONCE + 8, 16 * (GROUPS_AT_ONCE + 1)
    (cols,) = column_counts(kind, (64,))
    stored, x = random_stored(kind, rows, cols, 4), random(n_tokens, cols, 5)
    product, onto = stored_product(stored, kind, x, isa), random(n_tokens, rows, 6)
    alone = product.run_rows()
    np.testing.assert_array_equal(product.run(), alone)
    np.testing.assert_array_equal(product.run(onto=onto), onto + alone)


@each_isa
@each_type
@pytest.mark.parametrize("n_tokens", [2, 7])
def test_groups_in_pieces_equal_the_whole(isa: Isa, kind: TensorType, n_tokens: int) -> None:
    product = some_product(kind, 100, n_tokens, isa)
    assert product.n_groups == 7
    whole = product.run()
    splits: list[tuple[int, ...]] = [(i,) for i in range(1, 7)]
    splits += [(1, 2, 3, 4, 5, 6), (2, 4, 6), (1, 3, 5), (3, 4), (2, 5), (1, 6)]
    for pieces in splits:
        np.testing.assert_array_equal(product.run(pieces=pieces), whole, f"cut at {pieces}")
    onto = random(n_tokens, 112, 8)
    np.testing.assert_array_equal(product.run(pieces=(3, 5), onto=onto), product.run(onto=onto))


@each_isa
@each_type
def test_groups_of_one_row_in_pieces_equal_the_whole(isa: Isa, kind: TensorType) -> None:
    product = some_product(kind, 100, 1, isa)
    whole, onto = product.run_row(), random(1, 112, 8)[0]
    for pieces in ((1,), (6,), (2, 4, 6), (1, 3, 5), (1, 2, 3, 4, 5, 6)):
        np.testing.assert_array_equal(product.run_row(pieces=pieces), whole, f"cut at {pieces}")
        np.testing.assert_array_equal(product.run_row(pieces=pieces, onto=onto), onto + whole)


# --- extremes ---------------------------------------------------------------------------------


def signs(cols: int) -> NDArray[np.float64]:
    """Return six rows of activations at the ends of their range, by sign: ``(6, cols)``."""
    by_turns = 1 - 2 * (np.indices((2, cols)).sum(axis=0) % 2)
    at_random = np.sign(np.random.default_rng(11).normal(0, 1, (2, cols)))
    return np.concatenate([np.ones((1, cols)), -np.ones((1, cols)), by_turns, at_random])


@each_isa
@each_quantised
def test_sums_hold_at_the_ends_of_the_range(isa: Isa, kind: TensorType) -> None:
    stored = alike_bytes(kind)
    (cols,) = column_counts(kind, (64,))
    x = (127 * signs(cols)).astype(np.float32)
    got = stored_product(stored, kind, x, isa).run()
    assert_close(got, x, quants.dequantize(kind, stored, cols))


@each_isa
@each_quantised
def test_integer_sums_are_exact_for_any_bytes(isa: Isa, kind: TensorType) -> None:
    cols = column_counts(kind, (352, 352))[-1]
    stored = with_scales_of_one(random_stored(kind, 48, cols, 12), kind)
    x = np.random.default_rng(12).integers(-127, 128, (9, cols)).astype(np.float32)
    x[:, ::32] = 127  # every block's scale is 1, so float32 holds every sum
    w = quants.dequantize(kind, stored, cols).astype(np.float64)
    np.testing.assert_array_equal(stored_product(stored, kind, x, isa).run(), x @ w.T)


@each_isa
@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.name)
def test_every_row_and_block_has_its_own_scale(isa: Isa, kind: TensorType) -> None:
    w = random(40, 96, 13) * np.geomspace(1e-3, 1e3, 40).astype(np.float32)[:, None]
    w[:, 32:64] *= 100
    x = random(4, 96, 14) * np.array([[1e-2], [1], [1e2], [1e4]], np.float32)
    x[:, 64:] *= 1000
    got = Product(pack(w, kind, isa), x, isa).run()
    assert_close(got[:, :40], as_int8(x, kind), rounded(w, kind))


@each_isa
@each_quantised
def test_instruction_sets_agree_on_quantised_products(isa: Isa, kind: TensorType) -> None:
    if isa is GENERIC:
        return
    cols = column_counts(kind, (352, 352))[-1]
    stored, x = random_stored(kind, 48, cols, 15), random(5, cols, 16)
    here, plain = (stored_product(stored, kind, x, each).run() for each in (isa, GENERIC))
    _, magnitudes = exact(x, quants.dequantize(kind, stored, cols))
    assert np.max(np.abs(here - plain) / (magnitudes + TINY)) < FLOAT_ROUNDING
