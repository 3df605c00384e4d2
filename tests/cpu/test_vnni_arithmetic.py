"""The arithmetic of the VNNI product kernels, also on machines without VNNI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.emulation import emulate
from support.kernels import (
    QUANTISED,
    PackedMatrix,
    Product,
    alike_bytes,
    column_counts,
    random_stored,
    with_scales_of_one,
)

from pyrllama import quants
from pyrllama.cpu.formats import FORMATS
from pyrllama.cpu.target import AVX512, AVXVNNI, GENERIC, Isa

if TYPE_CHECKING:
    from pyrllama.tensors import TensorType


def shares_words(kind: TensorType) -> bool:
    """Whether sums of two runs of a type may share words."""
    return FORMATS[kind].shared_limit > 0


@pytest.fixture(params=[AVX512, AVXVNNI], ids=lambda isa: isa.name)
def vnni(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Isa:
    """Return an instruction set with VNNI that can run here."""
    isa: Isa = request.param
    emulate(isa, tmp_path_factory.getbasetemp(), monkeypatch)
    return isa


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_integer_sums_are_exact(vnni: Isa, kind: TensorType) -> None:
    (cols,) = column_counts(kind, (64,))
    levels = with_scales_of_one(random_stored(kind, 16, cols, 17), kind)
    stored = np.concatenate([levels, alike_bytes(kind)])
    x = np.random.default_rng(17).integers(-127, 128, (6, cols)).astype(np.float32)
    x[0], x[1] = 127, -127
    x[:, ::32] = 127  # every block's scale is 1
    product = Product(PackedMatrix(stored, kind, cols, GENERIC), x, vnni)
    w = quants.dequantize(kind, stored, cols).astype(np.float64)
    for got in (product.run_rows(), product.run()):
        np.testing.assert_array_equal(got[2:, :16], (x @ w.T)[2:, :16])
        # The ends of the range give sums that float32 does not hold to the last bit.
        np.testing.assert_allclose(got, x @ w.T, rtol=0, atol=1e-6 * np.abs(x @ w.T).max())


LIMIT = 1023
"""The sum of magnitudes of 16 activations up to which all types below let runs share words."""


@pytest.mark.parametrize("beyond", [0, 1], ids=["within the limit", "beyond it"])
@pytest.mark.parametrize("kind", [kind for kind in QUANTISED if shares_words(kind)])
def test_sums_that_share_words_are_exact(vnni: Isa, kind: TensorType, beyond: int) -> None:
    (cols,) = column_counts(kind, (512,))
    levels = with_scales_of_one(random_stored(kind, 16, cols, 18), kind)
    stored = np.concatenate([levels, alike_bytes(kind), levels])
    rng = np.random.default_rng(18)
    sizes = np.array([127, 70, *[59] * 14]) + np.eye(16, dtype=int)[1] * beyond
    assert sizes.sum() == LIMIT + beyond
    x = rng.permuted(np.tile(sizes, (6, cols // 16, 1)), axis=2).astype(np.float32)
    x[2:4] *= rng.choice([-1, 1], x[2:4].shape)
    x[4:] *= rng.choice([-1, 1], (2, cols // 16, 1))
    x[1] *= -1
    x = x.reshape(6, cols)
    product = Product(PackedMatrix(stored, kind, cols, GENERIC), x, vnni)
    w = quants.dequantize(kind, stored, cols).astype(np.float64)
    got = product.run()
    np.testing.assert_array_equal(got[:, :16], (x @ w.T)[:, :16])
    np.testing.assert_array_equal(got, product.run_rows())
    np.testing.assert_allclose(got, x @ w.T, rtol=0, atol=1e-6 * np.abs(x @ w.T).max())
