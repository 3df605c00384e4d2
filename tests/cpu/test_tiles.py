"""Products on matrix tiles against the reference, and a whole model that reads prompts on them.

They run on AMX where it is, else on an emulation of it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.cpu_models import cpu_model, reference_of
from support.emulation import emulate
from support.kernels import (
    QUANTISED,
    TYPES,
    PackedMatrix,
    Product,
    column_counts,
    random_stored,
)
from support.packed_layout import plain_scales
from support.tiny_models import chunk_of, logits_of, random_weights, tiny_config

from pyrllama import quants
from pyrllama.core import Batch
from pyrllama.cpu import target
from pyrllama.cpu.scratch import round_up
from pyrllama.cpu.target import AMX
from pyrllama.cpu.weights import MADE_TYPES
from pyrllama.model_config import Experts
from pyrllama.quants import type_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.tensors import TensorType

ROUNDING = 2.0**-7
"""Of the sum of magnitudes: two factors, each rounded to 8 bits, a 2^-8 off at most."""
TINY = 1e-30
"""Added to magnitudes: rows of scales that are all zero have none."""
each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
each_made_type = pytest.mark.parametrize("kind", MADE_TYPES, ids=lambda kind: kind.name)


@pytest.fixture
def tiles(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> target.Isa:
    """Return an instruction set with matrix tiles that can run here."""
    emulate(AMX, tmp_path_factory.getbasetemp(), monkeypatch)
    return AMX


def random(rows: int, cols: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (rows, cols)).astype(np.float32)


@each_type
@pytest.mark.parametrize(
    ("n_rows", "rows", "cols"),
    [(1, 16, 32), (5, 17, 64), (32, 32, 512), (33, 48, 544), (70, 100, 1056)],
)
def test_tile_products_equal_the_reference(
    tiles: target.Isa, kind: TensorType, n_rows: int, rows: int, cols: int
) -> None:
    cols = round_up(cols, quants.block_size(kind))
    stored, x = random_stored(kind, rows, cols, rows), random(n_rows, cols, cols)
    matrix = PackedMatrix(stored, kind, cols, target.GENERIC)
    got = Product(matrix, x, tiles, tiled=True).run()
    w = quants.dequantize(kind, stored, cols)
    a, b = x.astype(np.float64), w.astype(np.float64)
    error = np.abs(got[:, :rows] - a @ b.T) / (np.abs(a) @ np.abs(b).T + TINY)
    assert error.max() < ROUNDING
    assert not got[:, rows:].any(), "rows of padding"


@each_type
def test_small_whole_numbers_are_exact(tiles: target.Isa, kind: TensorType) -> None:
    stored, cols = whole_numbers(kind)
    w = quants.dequantize(kind, stored, cols)
    x = np.random.default_rng(1).integers(-100, 100, (40, cols)).astype(np.float32)
    matrix = PackedMatrix(stored, kind, cols, target.GENERIC)
    product = Product(matrix, x, tiles, tiled=True)
    np.testing.assert_array_equal(product.run(), x @ w.T)
    onto = random(40, 64, 2)
    np.testing.assert_array_equal(product.run(pieces=(2,), onto=onto), product.run(onto=onto))
    np.testing.assert_allclose(product.run(onto=onto), x @ w.T + onto, atol=2e-2)


def whole_numbers(kind: TensorType) -> tuple[NDArray[np.uint8], int]:
    """Return 64 stored rows of numbers that eight bits hold, and their columns."""
    (cols,) = column_counts(kind, (96,))
    if kind not in QUANTISED:
        return quants.quantize(kind, random_levels(64, cols)), cols
    scales = plain_scales(random_stored(kind, 64, cols, 1).reshape(-1, type_size(kind)), kind)
    return scales.reshape(64, -1), cols


def random_levels(rows: int, cols: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).integers(-8, 8, (rows, cols)).astype(np.float32)


@each_type
def test_pieces_of_one_group_equal_the_whole(tiles: target.Isa, kind: TensorType) -> None:
    (cols,) = column_counts(kind, (64,))
    matrix = PackedMatrix(random_stored(kind, 80, cols, 3), kind, cols, target.GENERIC)
    product = Product(matrix, random(35, cols, 4), tiles, tiled=True)
    np.testing.assert_array_equal(product.run(pieces=(2, 4)), product.run())


# --- a whole model ----------------------------------------------------------------------------

CONFIG = tiny_config(vocab_size=101, ffn_dim=160)
WEIGHTS = random_weights(CONFIG, seed=4, std=0.05)
TOKENS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 75).tolist()
LOGIT_ROUNDING = 2e-2
"""Of logits with a standard deviation near 0.4, after two layers of rounded products."""


@each_made_type
def test_a_prompt_on_tiles_equals_the_reference_and_single_tokens(
    tiles: target.Isa, kind: TensorType
) -> None:
    expected = logits_of(reference_of(CONFIG, WEIGHTS, kind, n_blocks=3), TOKENS)
    with cpu_model(CONFIG, WEIGHTS, tiles, kind) as model:
        whole = logits_of(model, TOKENS)
        chunks = [(0, 32), (32, 64), (64, 74), (74, 75)]  # on tiles, and the last ones without
        parts = [model.forward(Batch((chunk_of(TOKENS[a:b], a),))) for a, b in chunks]
        again = logits_of(model, TOKENS)
    error = np.abs(whole - expected)
    assert 0 < error.max() < 4 * LOGIT_ROUNDING
    assert np.median(error) < LOGIT_ROUNDING
    assert np.median(np.abs(np.concatenate(parts) - whole)) < LOGIT_ROUNDING
    np.testing.assert_array_equal(again, whole)


@each_made_type
@pytest.mark.parametrize("experts", [Experts(3, 2), Experts(9, 1)], ids=["all on tiles", "some"])
def test_experts_on_tiles_equal_the_reference(
    tiles: target.Isa, kind: TensorType, experts: Experts
) -> None:
    config = dataclasses.replace(CONFIG, experts=experts, ffn_dim=80)
    weights = random_weights(config, seed=8, std=0.05)
    expected = logits_of(reference_of(config, weights, kind, n_blocks=3), TOKENS)
    with cpu_model(config, weights, tiles, kind) as model:
        whole, again = logits_of(model, TOKENS), logits_of(model, TOKENS)
    assert 0 < np.median(np.abs(whole - expected)) < LOGIT_ROUNDING
    np.testing.assert_array_equal(again, whole)


@each_made_type
def test_rows_beside_others_on_tiles_have_the_same_bits(
    tiles: target.Isa, kind: TensorType
) -> None:
    other = TOKENS[::-1][:40]
    with cpu_model(CONFIG, WEIGHTS, tiles, kind, max_seq_len=160) as model:
        alone = logits_of(model, TOKENS), logits_of(model, other)
        batch = Batch((chunk_of(other), chunk_of(TOKENS, first_block=2)))
        together = model.forward(batch)
    np.testing.assert_array_equal(together[:40], alone[1])
    np.testing.assert_array_equal(together[40:], alone[0])


@pytest.mark.skipif(AMX not in target.supported(), reason="emulated tiles belong to no thread")
def test_threads_with_tiles_of_their_own_give_the_same_bits() -> None:
    results = []
    for threads in (1, 2, 5):
        with cpu_model(CONFIG, WEIGHTS, AMX, threads=threads) as model:
            results.append(logits_of(model, TOKENS))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
