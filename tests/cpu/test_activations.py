"""Activations in the forms that products read, against the reference and NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import ActivationArrays, call, each_isa

from pyrllama.cpu.records import BYTES, FLOATS, ROWS_AT_ONCE, TILES
from pyrllama.reference import ops

if TYPE_CHECKING:
    from pyrllama.cpu.target import Isa

F32 = np.float32
TINIEST = 2.0**-149
Array = NDArray[np.float32]


def sums_of(q: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return the sums of each block, of its first and of its last 16: ``(rows, blocks, 3)``."""
    halves = q.reshape(len(q), -1, 2, 16).sum(axis=3, dtype=np.int32)
    return np.concatenate([halves.sum(axis=2, keepdims=True, dtype=np.int32), halves], axis=2)


def activation_cases() -> dict[str, Array]:
    """Return rows whose blocks quantise in every way, ``(rows, multiple of 32)``."""
    rng = np.random.default_rng(2)
    ties = np.tile(np.arange(32) - 15.5, (2, 1)).astype(F32)
    ties[:, 0] = [127, -127]  # the scale is exactly 1
    mixed = np.zeros((3, 96), F32)
    mixed[0, 40] = 3
    mixed[1, :32] = rng.normal(0, 1, 32)
    return {
        "random": rng.normal(0, 1, (7, 352)).astype(F32),
        "ties go to even": ties,
        "zeros": np.zeros((1, 32), F32),
        "some blocks of zeros": mixed,
        "all equal": np.full((2, 64), -3.5, F32),
        "small": rng.normal(0, 1e-28, (3, 64)).astype(F32),
        "at the smallest maximum": np.full((1, 32), ops.SMALLEST_BLOCK_MAXIMUM, F32),
        "below the smallest maximum": np.full((1, 32), ops.SMALLEST_BLOCK_MAXIMUM * 0.999, F32),
        "the inverse overflows": rng.normal(0, 1e-37, (3, 64)).astype(F32),
        "denormal": rng.integers(0, 99, (3, 64)).astype(F32) * F32(TINIEST),
        "huge": rng.normal(0, 1e37, (3, 64)).astype(F32),
        "largest": np.where(np.arange(64) % 3, 1, -1)[None].astype(F32) * np.finfo(F32).max,
    }


@each_isa
@pytest.mark.parametrize("case", activation_cases())
def test_activations_quantise_exactly_as_the_reference_says(isa: Isa, case: str) -> None:
    x = activation_cases()[case]
    q, scales = ops.quantize_activations(x)
    activations = ActivationArrays(x)
    activations.prepare(isa, BYTES)
    np.testing.assert_array_equal(activations.q, q)
    np.testing.assert_array_equal(activations.scales, scales)
    sums = sums_of(q)
    np.testing.assert_array_equal(activations.sums, sums)
    with np.errstate(over="ignore"):
        scaled = sums.astype(F32) * scales[..., None]
    np.testing.assert_array_equal(activations.scaled_sums, scaled)


@each_isa
def test_only_the_blocks_asked_for_are_quantised_into_another_row(isa: Isa) -> None:
    x = np.random.default_rng(3).normal(0, 1, (3, 128)).astype(F32)
    activations = ActivationArrays(x)
    call("activations.quantise_kernel", isa, activations.address, 2, 0, 1, 3)
    expected, scales = ops.quantize_activations(x[2:])
    np.testing.assert_array_equal(activations.q[0, 32:96], expected[0, 32:96])
    np.testing.assert_array_equal(activations.scales[0], [0, *scales[0, 1:3], 0])
    activations.q[0, 32:96] = 0
    assert not activations.q.any()
    assert not activations.scales[1:].any()


# --- several rows -----------------------------------------------------------------------------


def in_sixes(rows: NDArray[np.generic], count: int) -> NDArray[np.generic]:
    """Return ``(sixes, columns, 6)`` of ``(rows, columns)``, zeros where rows are missing."""
    padded = np.zeros((count * ROWS_AT_ONCE, rows.shape[1]), rows.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(count, ROWS_AT_ONCE, -1).transpose(0, 2, 1)


@each_isa
@pytest.mark.parametrize("n_rows", [1, 6, 7, 17])
def test_rows_are_interleaved_six_by_six(isa: Isa, n_rows: int) -> None:
    x = np.random.default_rng(4).normal(0, 1, (n_rows, 96)).astype(F32)
    activations = ActivationArrays(x)
    activations.prepare(isa, FLOATS | BYTES)
    sixes = len(activations.floats)
    np.testing.assert_array_equal(activations.floats, in_sixes(x, sixes))
    blocks = [activations.q.view(np.int32).reshape(n_rows, 3, 8)]
    blocks += [
        part.view(np.int32).reshape(n_rows, 3, -1)
        for part in (activations.scales, activations.sums, activations.scaled_sums)
    ]
    words = in_sixes(np.concatenate(blocks, axis=2).reshape(n_rows, -1), sixes)
    np.testing.assert_array_equal(activations.bytes.reshape(words.shape), words)
    assert not activations.tiles.any()


@each_isa
@pytest.mark.parametrize("n_rows", [1, 16, 37])
def test_rows_are_rounded_to_bfloat16_in_tiles(isa: Isa, n_rows: int) -> None:
    x = np.random.default_rng(5).normal(0, 1, (n_rows, 96)).astype(F32)
    x[0, :6] = [np.inf, -np.inf, np.nan, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -TINIEST]
    activations = ActivationArrays(x)
    activations.prepare(isa, TILES)
    tiles = activations.tiles.reshape(-1, 3, 16, 32).transpose(0, 2, 1, 3).reshape(-1, 96)
    got = (tiles[:n_rows].astype(np.uint32) << np.uint32(16)).view(F32)
    np.testing.assert_array_equal(got[0, :6], [np.inf, -np.inf, np.nan, 1, 1 + 2.0**-6, -0.0])
    # Round to nearest: half a unit of the last of 8 bits.
    np.testing.assert_allclose(got[:, 6:], x[:, 6:], rtol=2.0**-8, atol=0)
    ties = np.abs(got.view(np.uint32) & 0xFFFF).max()
    assert ties == 0
    assert not tiles[n_rows:].any()
    assert not activations.bytes.any()


@each_isa
def test_only_the_blocks_asked_for_are_prepared(isa: Isa) -> None:
    x = np.random.default_rng(6).normal(0, 1, (2, 128)).astype(F32)
    part, whole = ActivationArrays(x), ActivationArrays(x)
    call("activations.prepare_kernel", isa, part.address, 1, FLOATS | BYTES | TILES, 1, 3)
    whole.prepare(isa)
    np.testing.assert_array_equal(part.floats[0, 32:96, 1], whole.floats[0, 32:96, 1])
    np.testing.assert_array_equal(part.bytes[0, 1:3, :, 1], whole.bytes[0, 1:3, :, 1])
    tiles, all_tiles = (a.tiles.reshape(-1, 4, 16, 32)[0, :, 1] for a in (part, whole))
    np.testing.assert_array_equal(tiles[1:3], all_tiles[1:3])
    assert not tiles[[0, 3]].any()
    assert not part.floats[0, :32].any()
    assert not part.floats[0, 96:].any()
    assert not part.bytes[0, [0, 3]].any()
