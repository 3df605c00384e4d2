"""Matrix products of every type against the reference, and what must not change a bit of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import (
    QUANTISED,
    TYPES,
    UNQUANTISED,
    PackedMatrix,
    Product,
    each_isa,
    pack,
    rounded,
    stored_blocks,
)

from pyrllama import quants
from pyrllama.core import TensorType
from pyrllama.cpu.target import GENERIC, Isa
from pyrllama.reference import ops

ROWS = (1, 16, 17, 48, 100)
COLS = (32, 64, 96, 352)
N_TOKENS = (1, 2, 5, 6, 7, 13)
FLOAT_ROUNDING = 1e-6
"""Of the sum of the magnitudes that a result adds up: some float32 roundings of 6e-8 each."""
each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]


def random(rows: int, cols: int, seed: int, std: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(0, std, (rows, cols)).astype(np.float32)


def exact(x: Array | Doubles, w: Array) -> tuple[Doubles, Doubles]:
    """Return the products in float64, and the sums of magnitudes that bound their rounding."""
    a, b = x.astype(np.float64), w.astype(np.float64)
    return a @ b.T, np.abs(a) @ np.abs(b).T


def as_int8(x: Array) -> Doubles:
    """Return what activations are after ``quantize_activations``."""
    q, scales = ops.quantize_activations(x)
    columns = np.repeat(scales.astype(np.float64), 32, axis=1)
    return np.asarray(q.astype(np.float64) * columns)


def assert_close(got: Array, x: Array | Doubles, w: Array) -> None:
    expected, magnitudes = exact(x, w)
    assert got.shape == expected.shape
    error = np.max(np.abs(got - expected) / magnitudes)
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
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_quantised_products_equal_the_reference(isa: Isa, kind: TensorType) -> None:
    for rows in ROWS:
        for cols in COLS:
            w, x = random(rows, cols, rows), random(max(N_TOKENS), cols, cols)
            stored = rounded(w, kind)
            got = Product(pack(w, kind, isa), x, isa).run()
            assert_close(got[:, :rows], as_int8(x), stored)
            np.testing.assert_allclose(
                got[:, :rows], ops.matmul_int8(x, stored), atol=4e-6 * np.sqrt(cols), rtol=1e-5
            )
            assert not got[:, rows:].any(), "rows of padding"


@each_isa
@each_type
def test_products_add_onto_what_is_there(isa: Isa, kind: TensorType) -> None:
    w, x = random(48, 96, 1), random(5, 96, 2)
    product = Product(pack(w, kind, isa), x, isa)
    plain, onto = product.run(), random(5, 48, 3)
    np.testing.assert_array_equal(product.run(onto=onto), onto + plain)


@each_isa
@each_type
def test_products_of_nothing_are_nothing(isa: Isa, kind: TensorType) -> None:
    w = random(17, 64, 1)
    assert not Product(pack(w, kind, isa), np.zeros((5, 64), np.float32), isa).run().any()
    nothing = pack(np.zeros_like(w), kind, isa)
    assert not Product(nothing, random(5, 64, 2), isa).run().any()


# --- bit for bit ------------------------------------------------------------------------------


@each_isa
@each_type
@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_rows_in_a_batch_equal_rows_alone(isa: Isa, kind: TensorType, n_tokens: int) -> None:
    for rows, cols in ((17, 32), (100, 352)):
        product = Product(pack(random(rows, cols, 4), kind, isa), random(n_tokens, cols, 5), isa)
        together = product.run()
        np.testing.assert_array_equal(together, product.run_rows())


@each_isa
@each_type
@pytest.mark.parametrize("n_tokens", [2, 7])
def test_groups_in_pieces_equal_the_whole(isa: Isa, kind: TensorType, n_tokens: int) -> None:
    product = Product(pack(random(100, 64, 6), kind, isa), random(n_tokens, 64, 7), isa)
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
    product = Product(pack(random(100, 64, 6), kind, isa), random(1, 64, 7), isa)
    whole, onto = product.run_row(), random(1, 112, 8)[0]
    for pieces in ((1,), (6,), (2, 4, 6), (1, 3, 5), (1, 2, 3, 4, 5, 6)):
        np.testing.assert_array_equal(product.run_row(pieces=pieces), whole, f"cut at {pieces}")
        np.testing.assert_array_equal(product.run_row(pieces=pieces, onto=onto), onto + whole)


# --- extremes ---------------------------------------------------------------------------------


def test_stored_blocks_mean_their_integers() -> None:
    for kind, low, high in ((TensorType.Q8_0, -128, 128), (TensorType.Q4_0, -8, 8)):
        weights = np.random.default_rng(9).integers(low, high, (3, 64))
        values = quants.dequantize(kind, stored_blocks(weights, kind), 64)
        np.testing.assert_array_equal(values, weights)


def integer_cases(low: int, high: int) -> dict[str, NDArray[np.int64]]:
    """Return weights at and between the ends of a type's range, ``(rows, cols)``."""
    shape = (32, 64)
    rng = np.random.default_rng(10)
    ends = np.array([low, high])
    return {
        "all lowest": np.full(shape, low),
        "all highest": np.full(shape, high),
        "all zero": np.zeros(shape, np.int64),
        "ends by turns": ends[np.indices(shape).sum(axis=0) % 2],
        "ends at random": ends[rng.integers(0, 2, shape)],
        "every value": rng.integers(low, high + 1, shape),
    }


X_SIGNS = {
    "plus": np.ones((6, 64)),
    "minus": -np.ones((6, 64)),
    "by turns": 1 - 2 * (np.indices((6, 64)).sum(axis=0) % 2),
    "random": np.sign(np.random.default_rng(11).normal(0, 1, (6, 64))),
}


@each_isa
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (kind, case)
        for kind, ends in ((TensorType.Q8_0, (-128, 127)), (TensorType.Q4_0, (-8, 7)))
        for case in integer_cases(*ends)
    ],
)
def test_integer_sums_are_exact_at_the_ends_of_the_range(
    isa: Isa, kind: TensorType, case: str
) -> None:
    weights = integer_cases(*((-128, 127) if kind is TensorType.Q8_0 else (-8, 7)))[case]
    matrix = PackedMatrix(stored_blocks(weights, kind), kind, 64, isa)
    for signs in X_SIGNS.values():
        x = 127 * signs.astype(np.float32)  # the scale is 1, so float32 holds every sum
        got = Product(matrix, x, isa).run()
        np.testing.assert_array_equal(got, x.astype(np.int64) @ weights.T)


@each_isa
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_integer_sums_are_exact_for_any_bytes(isa: Isa, kind: TensorType) -> None:
    rng = np.random.default_rng(12)
    low, high = (-128, 128) if kind is TensorType.Q8_0 else (-8, 8)
    weights = rng.integers(low, high, (48, 352))
    x = rng.integers(-127, 128, (9, 352))
    x[:, ::32] = 127  # every block's scale is 1
    got = Product(
        PackedMatrix(stored_blocks(weights, kind), kind, 352, isa), x.astype(np.float32), isa
    ).run()
    np.testing.assert_array_equal(got, x @ weights.T)


@each_isa
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_every_row_and_block_has_its_own_scale(isa: Isa, kind: TensorType) -> None:
    w = random(40, 96, 13) * np.geomspace(1e-3, 1e3, 40).astype(np.float32)[:, None]
    w[:, 32:64] *= 100
    x = random(4, 96, 14) * np.array([[1e-2], [1], [1e2], [1e4]], np.float32)
    x[:, 64:] *= 1000
    got = Product(pack(w, kind, isa), x, isa).run()
    assert_close(got[:, :40], as_int8(x), rounded(w, kind))


@each_isa
def test_instruction_sets_agree_on_quantised_products(isa: Isa) -> None:
    w, x = random(48, 352, 15), random(5, 352, 16)
    for kind in QUANTISED:
        here = Product(pack(w, kind, isa), x, isa).run()
        plain = Product(pack(w, kind, GENERIC), x, GENERIC).run()
        _, magnitudes = exact(x, rounded(w, kind))
        assert np.max(np.abs(here - plain) / magnitudes) < FLOAT_ROUNDING
