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
from support.kernels import TYPES, Product, pack, rounded
from support.tiny_models import chunk_of, logits_of, random_weights, tiny_config

from pyrllama.core import Batch, Experts
from pyrllama.cpu import target
from pyrllama.cpu.target import AMX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import TensorType

ROUNDING = 2.0**-7
"""Of the sum of magnitudes: two factors, each rounded to 8 bits, a 2^-8 off at most."""
each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)


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
    w, x = random(rows, cols, rows), random(n_rows, cols, cols)
    got = Product(pack(w, kind, target.GENERIC), x, tiles, tiled=True).run()
    a, b = x.astype(np.float64), rounded(w, kind).astype(np.float64)
    error = np.abs(got[:, :rows] - a @ b.T) / (np.abs(a) @ np.abs(b).T)
    assert error.max() < ROUNDING
    assert not got[:, rows:].any(), "rows of padding"


@each_type
def test_small_whole_numbers_are_exact(tiles: target.Isa, kind: TensorType) -> None:
    rng = np.random.default_rng(1)
    w = rng.integers(-7, 8, (64, 96)).astype(np.float32)
    w[:, ::32] = -8  # Q4_0's scale is 1
    if kind.name == "Q8_0":
        w[:, ::32] = 127
    x = rng.integers(-100, 100, (40, 96)).astype(np.float32)
    product = Product(pack(w, kind, target.GENERIC), x, tiles, tiled=True)
    np.testing.assert_array_equal(product.run(), x @ w.T)
    onto = random(40, 64, 2)
    np.testing.assert_array_equal(product.run(pieces=(2,), onto=onto), product.run(onto=onto))
    np.testing.assert_allclose(product.run(onto=onto), x @ w.T + onto, atol=2e-3)


@each_type
def test_pieces_of_one_group_equal_the_whole(tiles: target.Isa, kind: TensorType) -> None:
    w, x = random(80, 64, 3), random(35, 64, 4)
    product = Product(pack(w, kind, target.GENERIC), x, tiles, tiled=True)
    np.testing.assert_array_equal(product.run(pieces=(2, 4)), product.run())


# --- a whole model ----------------------------------------------------------------------------

CONFIG = tiny_config(vocab_size=101, ffn_dim=160)
WEIGHTS = random_weights(CONFIG, seed=4, std=0.05)
TOKENS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 75).tolist()
LOGIT_ROUNDING = 2e-2
"""Of logits with a standard deviation near 0.4, after two layers of rounded products."""


@each_type
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


@each_type
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


@each_type
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
