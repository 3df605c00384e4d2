"""The arithmetic of the VNNI product kernels, also on machines without VNNI."""

from __future__ import annotations

import numpy as np
import pytest
from support.emulation import emulate
from support.kernels import QUANTISED, PackedMatrix, Product, stored_blocks

from pyrllama.core import TensorType
from pyrllama.cpu.target import AVX512, AVXVNNI, GENERIC, Isa


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
    low, high = (-128, 128) if kind is TensorType.Q8_0 else (-8, 8)
    rng = np.random.default_rng(17)
    weights = rng.integers(low, high, (48, 160))
    weights[:4], weights[4:8] = low, high - 1
    x = rng.integers(-127, 128, (6, 160))
    x[0], x[1] = 127, -127
    x[:, ::32] = 127  # every block's scale is 1, and float32 holds every sum
    matrix = PackedMatrix(stored_blocks(weights, kind), kind, 160, GENERIC)
    product = Product(matrix, x.astype(np.float32), vnni)
    np.testing.assert_array_equal(product.run_rows(), x @ weights.T)
    np.testing.assert_array_equal(product.run(), x @ weights.T)
