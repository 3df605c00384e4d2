"""The reference against transformers, and the invariants of batches, chunks and cache blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.tiny_models import (
    MemoryCheckpoint,
    chunk_of,
    greedy,
    logits_of,
    random_weights,
    tiny_config,
)
from support.transformers_models import FIXTURE_FOLDERS, TransformersModel, load_fixture

from pyrllama.checkpoints.huggingface import HuggingFaceCheckpoint
from pyrllama.core import Batch, Chunk
from pyrllama.model_config import Llama3Rope
from pyrllama.models.llama import OUTPUT, check_tensors
from pyrllama.models.rope import ROPE_FACTORS, rope_frequencies
from pyrllama.reference import ReferenceModel, load_weights, ops
from pyrllama.reference.backend import ReferenceBackend
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE = 1e-4
"""Of a logit, as the same float32 sums taken in another order differ."""


@pytest.fixture(params=FIXTURE_FOLDERS, ids=lambda folder: folder.name)
def fixture(request: pytest.FixtureRequest) -> TransformersModel:
    return load_fixture(request.param)


def model_of(fixture: TransformersModel, n_blocks: int = 4) -> ReferenceModel:
    return ReferenceModel(fixture.config, fixture.weights, n_blocks)


def test_there_are_fixtures() -> None:
    names = [folder.name for folder in FIXTURE_FOLDERS]
    assert names == [
        "dynamic_rope",
        "grouped_tied",
        "linear_rope",
        "llama3_rope",
        "mistral_window",
        "mixtral",
        "multi_head",
        "multi_query_wide",
        "narrow_odd",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "yarn_rope",
    ]


def test_logits_equal_those_of_transformers(fixture: TransformersModel) -> None:
    logits = logits_of(model_of(fixture), fixture.tokens)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, fixture.logits, atol=TOLERANCE, rtol=0)


def test_logits_equal_those_of_transformers_through_the_checkpoint_reader(
    fixture: TransformersModel, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.node.callspec.params["fixture"]
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.config == fixture.config
        model = ReferenceModel.from_checkpoint(checkpoint, n_blocks=4)
        logits = logits_of(model, fixture.tokens)
    np.testing.assert_allclose(logits, fixture.logits, atol=TOLERANCE, rtol=0)


def test_the_fixtures_have_the_tensors_that_the_table_names(fixture: TransformersModel) -> None:
    checkpoint = MemoryCheckpoint(fixture.config, fixture.weights)
    check_tensors(checkpoint.path, checkpoint.config, checkpoint.tensors)


@pytest.mark.parametrize("sizes", [[1] * 70, [32, 32, 6], [5, 40, 25], [31, 2, 37]])
def test_a_prompt_in_chunks_equals_the_whole(fixture: TransformersModel, sizes: list[int]) -> None:
    model = model_of(fixture)
    rows = []
    start = 0
    for size in sizes:
        tokens = fixture.tokens[start : start + size]
        rows.append(model.forward(Batch((chunk_of(tokens, start),))))
        start += size
    np.testing.assert_allclose(np.concatenate(rows), fixture.logits, atol=TOLERANCE, rtol=0)


def test_sequences_in_one_batch_equal_each_alone(fixture: TransformersModel) -> None:
    first, second = fixture.tokens, fixture.tokens[10:30]
    alone = logits_of(model_of(fixture), second)
    model = model_of(fixture, n_blocks=8)
    model.forward(Batch((chunk_of(first[:40], first_block=4),)))
    together = model.forward(
        Batch((chunk_of(second, first_block=2), chunk_of(first[40:], 40, first_block=4)))
    )
    np.testing.assert_allclose(together[:20], alone, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(together[20:], fixture.logits[40:], atol=TOLERANCE, rtol=0)


def test_cache_blocks_may_be_any_in_any_order(fixture: TransformersModel) -> None:
    model = model_of(fixture, n_blocks=7)
    chunk = Chunk(tuple(fixture.tokens), 0, blocks=(6, 0, 3), outputs=1)
    logits = model.forward(Batch((chunk,)))
    np.testing.assert_allclose(logits, fixture.logits[-1:], atol=TOLERANCE, rtol=0)


def test_only_the_outputs_asked_for_come_back() -> None:
    config = tiny_config()
    model = ReferenceModel(config, random_weights(config), n_blocks=2)
    whole = logits_of(model, range(9))
    batch = Batch((chunk_of(range(9), outputs=2), chunk_of(range(9), first_block=1, outputs=0)))
    some = model.forward(batch)
    assert some.shape == (batch.n_outputs, config.vocab_size) == (2, 128)
    np.testing.assert_allclose(some, whole[-2:], atol=1e-5)


def test_generating_equals_scoring_again() -> None:
    config = tiny_config(n_kv_heads=1)
    model = ReferenceModel(config, random_weights(config, seed=3), n_blocks=4)
    prompt = [5, 17, 2]
    generated = greedy(model, prompt, 60)
    again = logits_of(model, prompt + generated)
    assert np.argmax(again[2:-1], axis=1).tolist() == generated
    assert len(set(generated)) > 5


def test_tied_embeddings_are_the_output_weights() -> None:
    config = tiny_config()
    weights = random_weights(config, tied=True)
    assert OUTPUT not in weights
    untied = weights | {OUTPUT: weights["token_embd.weight"]}
    tied_logits = logits_of(ReferenceModel(config, weights, 1), range(8))
    untied_logits = logits_of(ReferenceModel(config, untied, 1), range(8))
    np.testing.assert_array_equal(tied_logits, untied_logits)


def test_stored_rope_factors_equal_the_scaling_that_they_state() -> None:
    scaled = tiny_config(rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 64))
    plain = tiny_config()
    weights = random_weights(plain)
    factors = (rope_frequencies(plain) / rope_frequencies(scaled)).astype(np.float32)
    stored = logits_of(ReferenceModel(plain, weights | {ROPE_FACTORS: factors}, 3), range(70))
    computed = logits_of(ReferenceModel(scaled, weights, 3), range(70))
    np.testing.assert_allclose(stored, computed, atol=TOLERANCE)
    unscaled = logits_of(ReferenceModel(plain, weights, 3), range(70))
    assert np.max(np.abs(unscaled - computed)) > 0.1


def test_half_precision_cache_and_int8_activations_differ_by_their_rounding() -> None:
    config = tiny_config()
    weights = random_weights(config)
    exact = logits_of(ReferenceModel(config, weights, 2), range(40))
    half = logits_of(ReferenceModel(config, weights, 2, kv_dtype=np.float16), range(40))
    int8 = logits_of(ReferenceModel(config, weights, 2, matmul=ops.matmul_int8), range(40))
    assert 1e-5 < np.max(np.abs(half - exact)) < 1e-2
    assert 1e-3 < np.max(np.abs(int8 - exact)) < 0.5


@pytest.mark.parametrize("stored_as", [TensorType.F32, TensorType.F16, TensorType.Q8_0])
def test_weights_load_from_every_stored_type(stored_as: TensorType) -> None:
    config = tiny_config()
    weights = random_weights(config)
    loaded = load_weights(MemoryCheckpoint(config, weights, stored_as))
    assert loaded.keys() == weights.keys()
    for name, values in loaded.items():
        assert values.dtype == np.float32
        assert values.shape == weights[name].shape
        step = 0.0 if stored_as is TensorType.F32 or values.ndim == 1 else 1e-2
        np.testing.assert_allclose(values, weights[name], atol=step)


def test_damaged_weights_give_no_warnings() -> None:
    """Whoever takes the logits looks whether they are numbers."""
    config = tiny_config(n_layers=1)
    weights = random_weights(config)
    weights[OUTPUT][:] = 3e38
    backend = ReferenceBackend(MemoryCheckpoint(config, weights), 32)
    assert not np.isfinite(logits_of(backend, [1])).all()
