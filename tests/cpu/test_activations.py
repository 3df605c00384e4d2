"""Activations in the forms that products read, against the reference and NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import ActivationArrays, QuantisedArrays, call, each_isa

from pyrllama.cpu.records import BYTES, FLOATS, ROWS_AT_ONCE, TILES, WIDE_BYTES
from pyrllama.reference import ops

if TYPE_CHECKING:
    from pyrllama.cpu.target import Isa

F32 = np.float32
TINIEST = 2.0**-149
Array = NDArray[np.float32]


def sums_of(q: NDArray[np.int8]) -> NDArray[np.int16]:
    """Return the sums of each block, of its first and of its last 16: ``(rows, blocks, 3, 2)``.

    Of every four columns, two count for the first of a pair and two for the second.
    """
    halves = q.reshape(len(q), -1, 2, 4, 2, 2).sum(axis=(3, 5), dtype=np.int16)
    return np.concatenate([halves.sum(axis=2, keepdims=True, dtype=np.int16), halves], axis=2)


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


def assert_quantised(got: QuantisedArrays, x: Array, block: int) -> None:
    """Fail unless rows are what the reference makes of them, with a scale for every block."""
    q, scales = ops.quantize_activations(x, block)
    scales = np.repeat(scales, block // 32, axis=1)
    np.testing.assert_array_equal(got.q, q)
    np.testing.assert_array_equal(got.scales, scales)
    sums = sums_of(q)
    np.testing.assert_array_equal(got.sums.view(np.int16).reshape(sums.shape), sums)
    with np.errstate(over="ignore"):
        scaled = sums.sum(axis=3).astype(F32) * scales[..., None]
    np.testing.assert_array_equal(got.scaled_sums, scaled)


@each_isa
@pytest.mark.parametrize("case", activation_cases())
def test_activations_quantise_exactly_as_the_reference_says(isa: Isa, case: str) -> None:
    x = activation_cases()[case]
    activations = ActivationArrays(x)
    activations.prepare(isa, BYTES)
    assert_quantised(activations.blocks, x, 32)
    assert not activations.super_blocks.q.any()


@each_isa
@pytest.mark.parametrize("case", activation_cases())
def test_super_blocks_have_one_scale(isa: Isa, case: str) -> None:
    x = activation_cases()[case]
    wide = np.zeros((len(x), 512), F32)
    wide[:, : x.shape[1]] = x
    wide[0, 300:] = -1
    activations = ActivationArrays(wide)
    activations.prepare(isa, WIDE_BYTES)
    assert_quantised(activations.super_blocks, wide, 256)
    assert not activations.blocks.q.any()


@each_isa
def test_only_the_blocks_asked_for_are_quantised_into_another_row(isa: Isa) -> None:
    x = np.random.default_rng(3).normal(0, 1, (3, 128)).astype(F32)
    activations = ActivationArrays(x)
    call("activations.quantise_kernel", isa, activations.address, 2, 0, BYTES, 1, 3)
    expected, scales = ops.quantize_activations(x[2:])
    got = activations.blocks
    np.testing.assert_array_equal(got.q[0, 32:96], expected[0, 32:96])
    np.testing.assert_array_equal(got.scales[0], [0, *scales[0, 1:3], 0])
    got.q[0, 32:96] = 0
    assert not got.q.any()
    assert not got.scales[1:].any()


@each_isa
def test_only_the_super_blocks_asked_for_are_quantised(isa: Isa) -> None:
    x = np.random.default_rng(3).normal(0, 1, (2, 768)).astype(F32)
    activations = ActivationArrays(x)
    call("activations.quantise_kernel", isa, activations.address, 1, 0, WIDE_BYTES, 8, 16)
    expected, _ = ops.quantize_activations(x[1:], 256)
    got = activations.super_blocks
    np.testing.assert_array_equal(got.q[0, 256:512], expected[0, 256:512])
    got.q[0, 256:512] = 0
    assert not got.q.any()
    assert not activations.blocks.q.any()


# --- several rows -----------------------------------------------------------------------------


def in_sixes(rows: NDArray[np.generic], count: int) -> NDArray[np.generic]:
    """Return ``(sixes, columns, 6)`` of ``(rows, columns)``, zeros where rows are missing."""
    padded = np.zeros((count * ROWS_AT_ONCE, rows.shape[1]), rows.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(count, ROWS_AT_ONCE, -1).transpose(0, 2, 1)


def words_of_super_blocks(q: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return what the wide form has behind its sums: ``(rows, blocks, 3)``."""
    runs = q.reshape(len(q), -1, 8, 2, 16).astype(np.int32)  # super-blocks, blocks, halves
    words = np.zeros((*runs.shape[:3], 3), np.int32)
    words[:, :, 0, 0] = np.abs(runs).sum(axis=4).max(axis=(2, 3))
    halves = runs.sum(axis=4)
    words[..., 1] = (halves[..., 0] & 0xFFFF) | (halves[..., 1] << 16)
    blocks = halves.sum(axis=3)
    words[:, :, ::2, 2] = (blocks[:, :, ::2] & 0xFFFF) | (blocks[:, :, 1::2] << 16)
    return words.reshape(len(q), -1, 3)


def whole_sums(pairs: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return both sums of every pair of 16 bits together."""
    halves = pairs.view(np.int16).reshape(*pairs.shape, 2).astype(np.int32)
    return halves[..., 0] + halves[..., 1]


@each_isa
@pytest.mark.parametrize("n_rows", [1, 6, 7, 17])
def test_rows_are_interleaved_six_by_six(isa: Isa, n_rows: int) -> None:
    x = np.random.default_rng(4).normal(0, 1, (n_rows, 256)).astype(F32)
    activations = ActivationArrays(x)
    activations.prepare(isa, FLOATS | BYTES | WIDE_BYTES)
    sixes = len(activations.floats)
    np.testing.assert_array_equal(activations.floats, in_sixes(x, sixes))
    wide = activations.super_blocks
    for got, last in (
        (activations.blocks, activations.blocks.scaled_sums),
        (wide, words_of_super_blocks(wide.q)),
    ):
        sums = got.sums if isa.name == "avx2" else -128 * whole_sums(got.sums)
        parts = (got.q, got.scales, sums, last)
        blocks = [part.view(np.int32).reshape(n_rows, 8, -1) for part in parts]
        words = in_sixes(np.concatenate(blocks, axis=2).reshape(n_rows, -1), sixes)
        np.testing.assert_array_equal(got.bytes.reshape(words.shape), words)
    assert not activations.tiles.any()


@each_isa
@pytest.mark.parametrize("case", [*activation_cases(), "seventeen rows", "no number"])
def test_six_rows_at_once_equal_each_alone(isa: Isa, case: str) -> None:
    rng = np.random.default_rng(7)
    x = activation_cases().get(case, rng.normal(0, 1, (17, 512)).astype(F32))
    rows = np.zeros((max(len(x), 2), 512), F32)
    rows[: len(x), : x.shape[1]] = x
    if case == "no number":
        rows[3, 40] = np.nan
    six, alone = ActivationArrays(rows), ActivationArrays(rows)
    six.prepare_sixes(isa, FLOATS | BYTES | WIDE_BYTES | TILES, 0, 8)
    six.prepare_sixes(isa, FLOATS | BYTES | WIDE_BYTES | TILES, 8, 16)
    alone.prepare(isa)
    np.testing.assert_array_equal(six.floats, alone.floats)
    np.testing.assert_array_equal(six.tiles, alone.tiles)
    for got, expected in ((six.blocks, alone.blocks), (six.super_blocks, alone.super_blocks)):
        ours, theirs = (a.bytes.reshape(-1, 16, 15, 6).copy() for a in (got, expected))
        if case == "no number":
            # A factor of zero: only the scale tells.
            for words in (ours, theirs):
                words[0, ..., 3] = np.isnan(words[0, :, 8:9, 3].view(F32))
        np.testing.assert_array_equal(ours, theirs)


@each_isa
def test_only_the_blocks_asked_for_of_six_rows_are_prepared(isa: Isa) -> None:
    x = np.random.default_rng(8).normal(0, 1, (7, 768)).astype(F32)
    part, whole = ActivationArrays(x), ActivationArrays(x)
    part.prepare_sixes(isa, BYTES | WIDE_BYTES, 8, 16)
    whole.prepare(isa, BYTES | WIDE_BYTES)
    for got, expected in ((part.blocks, whole.blocks), (part.super_blocks, whole.super_blocks)):
        ours, theirs = (a.bytes.reshape(2, 24, 15, 6) for a in (got, expected))
        np.testing.assert_array_equal(ours[:, 8:16], theirs[:, 8:16])
        assert not ours[:, :8].any()
        assert not ours[:, 16:].any()


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
    assert not activations.blocks.bytes.any()


@each_isa
def test_only_the_blocks_asked_for_are_prepared(isa: Isa) -> None:
    x = np.random.default_rng(6).normal(0, 1, (2, 128)).astype(F32)
    part, whole = ActivationArrays(x), ActivationArrays(x)
    call("activations.prepare_kernel", isa, part.address, 1, FLOATS | BYTES | TILES, 1, 3)
    whole.prepare(isa)
    np.testing.assert_array_equal(part.floats[0, 32:96, 1], whole.floats[0, 32:96, 1])
    part_bytes, whole_bytes = part.blocks.bytes, whole.blocks.bytes
    np.testing.assert_array_equal(part_bytes[0, 1:3, :, 1], whole_bytes[0, 1:3, :, 1])
    tiles, all_tiles = (a.tiles.reshape(-1, 4, 16, 32)[0, :, 1] for a in (part, whole))
    np.testing.assert_array_equal(tiles[1:3], all_tiles[1:3])
    assert not tiles[[0, 3]].any()
    assert not part.floats[0, :32].any()
    assert not part.floats[0, 96:].any()
    assert not part_bytes[0, [0, 3]].any()
