"""Normalisation and SwiGLU against the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import Guarded, call, each_isa

from pyrllama.reference import ops

if TYPE_CHECKING:
    from pyrllama.cpu.target import Isa

F32 = np.float32
TINIEST = float(np.finfo(np.float32).smallest_subnormal)

Array = NDArray[np.float32]


# --- RMS norm ---------------------------------------------------------------------------------


def rms_norm(x: Array, weight: Array, eps: float, isa: Isa) -> Array:
    """Run the kernel on a row padded with zeros to whole vectors; return all that it wrote."""
    n = len(x)
    rows = [Guarded(-(-n // 16) * 16, F32, misaligned=4) for _ in range(3)]
    rows[0].array[:n], rows[1].array[:n] = x, weight
    rows[2].array[:] = np.nan
    number = np.array([eps], F32)
    addresses = [row.address for row in rows]
    call("norm.rms_norm_kernel", isa, *addresses, n, number.ctypes.data)
    for row in rows:
        row.check()
    return np.array(rows[2].array)


@each_isa
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 48, 100, 4096])
def test_rms_norm_equals_the_reference_and_pads_with_zeros(isa: Isa, n: int) -> None:
    rng = np.random.default_rng(n)
    x, weight = rng.normal(0, 3, n).astype(F32), rng.uniform(0.5, 1.5, n).astype(F32)
    got = rms_norm(x, weight, 1e-5, isa)
    exact = x.astype(float) / np.sqrt(np.mean(x.astype(float) ** 2) + 1e-5) * weight
    np.testing.assert_allclose(got[:n], exact, rtol=5e-7)
    np.testing.assert_allclose(got[:n], ops.rms_norm(x[None], weight, 1e-5)[0], rtol=5e-7)
    assert not got[n:].any()


@each_isa
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-10, 1e10])
def test_rms_norm_of_small_and_large_rows(isa: Isa, size: float) -> None:
    x = np.linspace(-1, 1, 33).astype(F32) * F32(size)
    weight = np.ones(33, F32)
    expected = ops.rms_norm(x[None], weight, 1e-6)[0]
    np.testing.assert_allclose(rms_norm(x, weight, 1e-6, isa)[:33], expected, rtol=1e-6)


# --- SwiGLU and the exponential ---------------------------------------------------------------


def swiglu(gate: Array, up: Array, isa: Isa) -> Array:
    """Run the kernel over a multiple of 16 numbers."""
    rows = [Guarded(len(gate), F32, misaligned=8) for _ in range(3)]
    rows[0].array[:], rows[1].array[:] = gate, up
    call("norm.swiglu_kernel", isa, *(row.address for row in rows), len(gate))
    for row in rows:
        row.check()
    return np.array(rows[2].array)


def exact_swiglu(gate: Array, up: Array) -> NDArray[np.float64]:
    """Return SwiGLU in float64, without an overflow."""
    g = gate.astype(np.float64)
    e = np.exp(-np.abs(g))
    return np.asarray(g * np.where(g >= 0, 1 / (1 + e), e / (1 + e)) * up)


@each_isa
def test_swiglu_is_right_to_a_few_roundings(isa: Isa) -> None:
    rng = np.random.default_rng(4)
    gate = np.concatenate([rng.normal(0, 2, 1600), rng.uniform(-80, 80, 1600)]).astype(F32)
    up = rng.normal(0, 1, 3200).astype(F32)
    got = swiglu(gate, up, isa)
    np.testing.assert_allclose(got, exact_swiglu(gate, up), rtol=6e-7)
    np.testing.assert_allclose(got, ops.swiglu(gate, up), rtol=8e-7)


@each_isa
def test_the_exponential_is_right_to_3e_7_over_its_whole_range(isa: Isa) -> None:
    # For gates from -87 to -20, silu(g) is g e^g to the last bit: e^-g shows in g / silu(g).
    gate = np.linspace(-87, -20, 1 << 16).astype(F32)
    got = gate / swiglu(gate, np.ones_like(gate), isa).astype(np.float64)
    relative = got / np.exp(-gate.astype(np.float64)) - 1
    assert np.max(np.abs(relative)) < 4e-7  # the exponential's 3e-7, a division, a product


@each_isa
def test_swiglu_of_very_negative_gates_is_nothing(isa: Isa) -> None:
    gate = -np.concatenate([np.linspace(80, 500, 1 << 15), np.geomspace(500, 1e7, 1 << 10)])
    gate = gate.astype(F32)
    got = swiglu(gate, np.ones_like(gate), isa)
    wrong = ~(np.abs(got) <= 1e-30)
    assert not wrong.any(), f"{wrong.sum()} wrong, as silu({gate[wrong][0]}) = {got[wrong][0]}"


@each_isa
def test_swiglu_of_very_positive_gates_is_the_gate(isa: Isa) -> None:
    gate = np.geomspace(30, 1e30, 1024).astype(F32)
    np.testing.assert_array_equal(swiglu(gate, np.full_like(gate, 2), isa), 2 * gate)


@each_isa
def test_swiglu_of_zero_is_zero_and_of_padding_stays_zero(isa: Isa) -> None:
    assert swiglu(np.zeros(16, F32), np.full(16, 5, F32), isa).tolist() == [0.0] * 16


@each_isa
def test_swiglu_shows_what_is_not_a_number(isa: Isa) -> None:
    gate = np.full(16, np.nan, F32)
    assert np.isnan(swiglu(gate, np.ones_like(gate), isa)).all()
