"""What must not change a single bit of the CPU backend's logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from support.cpu_models import cpu_model
from support.kernels import EXACT_ISAS
from support.tiny_models import chunk_of, greedy, logits_of, random_weights, tiny_config

from pyrllama.core import Batch, Chunk
from pyrllama.cpu.weights import MADE_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.cpu.model import CpuModel
    from pyrllama.cpu.target import Isa
    from pyrllama.tensors import TensorType

CONFIG = tiny_config(vocab_size=101, ffn_dim=160)
"""Five groups of rows in the FFN's inner matrices: an odd number, in pieces of two."""
WEIGHTS = random_weights(CONFIG, seed=4)
TOKENS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 75).tolist()
"""Three blocks of the cache, the last one not full."""
MAX_SEQ_LEN = 256
Logits = NDArray[np.float32]


@pytest.fixture(scope="module", params=EXACT_ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    chosen: Isa = request.param
    return chosen


@pytest.fixture(scope="module", params=MADE_TYPES, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> TensorType:
    chosen: TensorType = request.param
    return chosen


@pytest.fixture(scope="module")
def model(isa: Isa, kind: TensorType) -> Iterator[CpuModel]:
    with cpu_model(CONFIG, WEIGHTS, isa, kind, threads=2, max_seq_len=MAX_SEQ_LEN) as model:
        yield model


@pytest.fixture(scope="module")
def whole(model: CpuModel) -> Logits:
    """Return the logits after every token, from one pass."""
    logits = logits_of(model, TOKENS)
    assert np.isfinite(logits).all()
    assert logits.shape == (75, 101)
    return logits


def in_chunks(model: CpuModel, sizes: list[int]) -> Logits:
    """Return the logits after every token, from a pass for every chunk."""
    rows, start = [], 0
    for size in sizes:
        rows.append(model.forward(Batch((chunk_of(TOKENS[start : start + size], start),))))
        start += size
    assert start == len(TOKENS)
    return np.concatenate(rows)


@pytest.mark.parametrize(
    "sizes",
    [[1] * 75, [32, 32, 11], [31, 2, 42], [4, 71], [5, 3, 67], [74, 1], [1, 74], [64, 11]],
    ids=str,
)
def test_a_prompt_in_chunks_equals_the_whole(
    model: CpuModel, whole: Logits, sizes: list[int]
) -> None:
    np.testing.assert_array_equal(in_chunks(model, sizes), whole)


def test_the_same_pass_twice_gives_the_same(model: CpuModel, whole: Logits) -> None:
    np.testing.assert_array_equal(logits_of(model, TOKENS), whole)


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_the_number_of_threads_does_not_matter(
    isa: Isa, kind: TensorType, whole: Logits, threads: int
) -> None:
    with cpu_model(CONFIG, WEIGHTS, isa, kind, threads=threads, max_seq_len=MAX_SEQ_LEN) as model:
        np.testing.assert_array_equal(logits_of(model, TOKENS), whole)
        np.testing.assert_array_equal(in_chunks(model, [1, 1, 1, 70, 1, 1]), whole)


def test_more_threads_than_positions(isa: Isa, kind: TensorType, whole: Logits) -> None:
    with cpu_model(CONFIG, WEIGHTS, isa, kind, threads=5, max_seq_len=1) as model:
        np.testing.assert_array_equal(logits_of(model, TOKENS[:1]), whole[:1])


def test_sequences_in_one_batch_equal_each_alone(model: CpuModel, whole: Logits) -> None:
    other = TOKENS[::-1][:40]
    alone = logits_of(model, other)
    model.forward(Batch((chunk_of(TOKENS[:50], first_block=3),)))
    together = model.forward(Batch((chunk_of(other), chunk_of(TOKENS[50:], 50, first_block=3))))
    np.testing.assert_array_equal(together[:40], alone)
    np.testing.assert_array_equal(together[40:], whole[50:])


def test_decodes_beside_a_prompt_equal_each_alone(model: CpuModel, whole: Logits) -> None:
    model.forward(Batch((chunk_of(TOKENS[:32]), chunk_of(TOKENS[:64], first_block=2))))
    decodes = (
        chunk_of(TOKENS[32:33], 32, outputs=1),
        chunk_of(TOKENS[64:65], 64, first_block=2),
        chunk_of(TOKENS[:33], first_block=5, outputs=1),
    )
    logits = model.forward(Batch(decodes))
    np.testing.assert_array_equal(logits, whole[[32, 64, 32]])


def test_cache_blocks_may_be_any_in_any_order(model: CpuModel, whole: Logits) -> None:
    model.forward(Batch((Chunk(tuple(TOKENS[:40]), 0, (7, 2)),)))
    logits = model.forward(Batch((Chunk(tuple(TOKENS[40:]), 40, (7, 2, 5), outputs=35),)))
    np.testing.assert_array_equal(logits, whole[40:])


def test_what_the_cache_held_before_does_not_matter(model: CpuModel, whole: Logits) -> None:
    model._kv.blocks[:] = 0xFF  # every half is NaN
    np.testing.assert_array_equal(logits_of(model, TOKENS), whole)
    model._kv.blocks[:] = 0xFF
    np.testing.assert_array_equal(in_chunks(model, [33, 1, 41]), whole)


def test_only_the_outputs_asked_for_come_back(model: CpuModel, whole: Logits) -> None:
    chunks = [
        chunk_of(TOKENS[:40], first_block=0, outputs=2),
        chunk_of(TOKENS[:9], first_block=2, outputs=0),
        chunk_of(TOKENS[:3], first_block=3, outputs=3),
    ]
    batch = Batch(tuple(chunks))
    logits = model.forward(batch)
    assert logits.shape == (batch.n_outputs, CONFIG.vocab_size) == (5, 101)
    np.testing.assert_array_equal(logits, whole[[38, 39, 0, 1, 2]])
    assert model.forward(Batch((chunk_of(TOKENS[:9], outputs=0),))).shape == (0, 101)


def test_the_result_is_the_callers_own(model: CpuModel, whole: Logits) -> None:
    logits = logits_of(model, TOKENS)
    logits_of(model, TOKENS[::-1])
    np.testing.assert_array_equal(logits, whole)


def test_the_largest_batch_equals_its_parts(model: CpuModel, whole: Logits) -> None:
    assert model.max_batch_tokens == MAX_SEQ_LEN
    chunks = [chunk_of(TOKENS[:32], first_block=block) for block in range(8)]
    logits = model.forward(Batch(tuple(chunks)))
    np.testing.assert_array_equal(logits, np.tile(whole[:32], (8, 1)))


def test_generating_equals_scoring_again(model: CpuModel) -> None:
    prompt = [5, 17, 2]
    generated = greedy(model, prompt, 60)
    again = logits_of(model, prompt + generated)
    assert np.argmax(again[2:-1], axis=1).tolist() == generated
    assert len(set(generated)) > 5
