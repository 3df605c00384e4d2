"""The CPU backend's whole forward pass against the reference, transformers and a golden text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from support.cpu_models import cpu_model, reference_of
from support.kernels import (
    EXACT_ISAS,
    QUANTISED,
    TYPES,
    activation_block,
    each_exact_isa,
    each_isa,
    use_isa,
)
from support.stored_models import StoredCheckpoint
from support.tiny_models import (
    GOLDEN,
    MemoryCheckpoint,
    Weights,
    chunk_of,
    greedy,
    logits_of,
    random_weights,
    tiny_config,
)
from support.transformers_models import FIXTURE_FOLDERS, LONG_FOLDERS, load_fixture, load_long

from pyrllama.checkpoints.llama2c import Llama2cCheckpoint
from pyrllama.core import Batch
from pyrllama.cpu.model import load_model
from pyrllama.cpu.target import Isa, chosen
from pyrllama.cpu.weights import MADE_TYPES
from pyrllama.model_config import Llama3Rope, ModelConfig
from pyrllama.models.rope import ROPE_FACTORS, rope_frequencies
from pyrllama.reference import ReferenceModel, ops
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"vocab_size": 101},
    "head_8": {"head_dim": 8, "n_kv_heads": 4, "dim": 32, "ffn_dim": 33, "vocab_size": 101},
    "head_20": {"head_dim": 20, "dim": 80, "ffn_dim": 172, "vocab_size": 31},
    "head_64": {"head_dim": 64, "n_kv_heads": 1},
    "head_80": {"head_dim": 80, "n_heads": 3, "n_kv_heads": 3, "dim": 48, "vocab_size": 17},
    "head_128": {"head_dim": 128, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 160, "n_layers": 3},
}
WEIGHT_STD = 0.05
"""Attention is spread over many positions, and logits have a standard deviation near 0.4."""
FLOAT_ROUNDING = 1e-5
"""Between two orders of the same float32 sums; few results move more, for the next two reasons."""
CACHE_ROUNDING = 1e-3
"""When a sum falls on the other side of a tie, a float16 of the cache moves by its last bit."""
ACTIVATION_ROUNDING = 6e-2
"""When an activation does, it moves by a whole int8 step."""
TRANSFORMERS_AGREEMENT = 1e-4
"""Float32 weights and a float32 cache."""
TRANSFORMERS_LONG = 1e-2
"""The same at position 16,383, whose angles transformers computes in float32: the fastest pair's
is off by up to 1e-3 of a radian."""
TRANSFORMERS_ROUNDING = 2e-2
"""A float16 cache against one of float32, seen up to 1.1e-2: with the fixtures' large weights,
the reference with a float16 cache is as far from transformers as the kernels are."""
TRANSFORMERS_QUANTISED = 0.3
"""A Q8_0 cache, seen up to 0.19, where logits reach 6.4."""

each_type = pytest.mark.parametrize("kind", MADE_TYPES, ids=lambda kind: kind.name)


@dataclass(frozen=True)
class Case:
    """A model, a sequence of 90 tokens, 12 sequences of 4, and the reference's logits of them."""

    config: ModelConfig
    weights: Weights
    long: list[int]
    short: Batch
    long_logits: NDArray[np.float32]
    short_logits: NDArray[np.float32]


@cache  # every instruction set is compared with the same
def case_of(shape: str, kind: TensorType) -> Case:
    config = tiny_config(**SHAPES[shape])
    weights = random_weights(config, seed=1, tied=shape == "tied", std=WEIGHT_STD)
    rng = np.random.default_rng(2)
    long = rng.integers(0, config.vocab_size, 90).tolist()
    short = rng.integers(0, config.vocab_size, (12, 4)).tolist()
    batch = Batch(tuple(chunk_of(tokens, first_block=i) for i, tokens in enumerate(short)))
    reference = reference_of(config, weights, kind, n_blocks=12)
    return Case(config, weights, long, batch, logits_of(reference, long), reference.forward(batch))


@each_exact_isa
@each_type
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_reference(isa: Isa, kind: TensorType, shape: str) -> None:
    case = case_of(shape, kind)
    with cpu_model(case.config, case.weights, isa, kind, threads=2, max_seq_len=384) as model:
        long_errors = np.abs(logits_of(model, case.long) - case.long_logits)
        short_errors = np.abs(model.forward(case.short) - case.short_logits)
    assert np.max(long_errors) < (ACTIVATION_ROUNDING if kind in QUANTISED else CACHE_ROUNDING)
    assert np.median(short_errors) < FLOAT_ROUNDING


@each_exact_isa
@pytest.mark.parametrize(
    ("kv_type", "tolerance"),
    [
        (TensorType.F32, TRANSFORMERS_AGREEMENT),
        (TensorType.F16, TRANSFORMERS_ROUNDING),
        (TensorType.Q8_0, TRANSFORMERS_QUANTISED),
    ],
    ids=["F32 cache", "F16 cache", "Q8_0 cache"],
)
@pytest.mark.parametrize("folder", FIXTURE_FOLDERS, ids=lambda folder: folder.name)
def test_logits_equal_those_of_transformers(
    isa: Isa, folder: Path, kv_type: TensorType, tolerance: float
) -> None:
    fixture = load_fixture(folder)
    with cpu_model(fixture.config, fixture.weights, isa, threads=2, kv_type=kv_type) as model:
        logits = logits_of(model, fixture.tokens)
    errors = np.max(np.abs(logits - fixture.logits), axis=1)  # (tokens,)
    # Where two experts are about as probable, a rounded cache can have the other one chosen.
    strays = 2 if fixture.config.experts and kv_type is not TensorType.F32 else 0
    assert np.count_nonzero(errors > tolerance) <= strays


@pytest.mark.parametrize("folder", LONG_FOLDERS, ids=lambda folder: folder.name)
def test_logits_at_long_positions_equal_those_of_transformers(folder: Path) -> None:
    fixture, text = load_fixture(folder), load_long(folder)
    isa, n = EXACT_ISAS[0], len(text.tokens)
    with cpu_model(
        fixture.config, fixture.weights, isa, threads=2, max_seq_len=n, kv_type=TensorType.F32
    ) as model:
        rows = []
        wanted = set(text.positions.tolist())
        for start in range(0, n, model.max_batch_tokens):
            chunk = text.tokens[start : start + model.max_batch_tokens]
            outputs = [i for i in range(len(chunk)) if start + i in wanted]
            n_outputs = len(chunk) - outputs[0] if outputs else 0
            logits = model.forward(Batch((chunk_of(chunk, start, outputs=n_outputs),)))
            rows += [logits[i - len(chunk)] for i in outputs]
    np.testing.assert_allclose(np.array(rows), text.logits, atol=TRANSFORMERS_LONG, rtol=0)


@each_exact_isa
@pytest.mark.parametrize("folder", FIXTURE_FOLDERS, ids=lambda folder: folder.name)
def test_a_float16_cache_rounds_as_the_references_does(isa: Isa, folder: Path) -> None:
    fixture = load_fixture(folder)
    reference = reference_of(fixture.config, fixture.weights, TensorType.F32, n_blocks=3)
    expected = logits_of(reference, fixture.tokens)
    with cpu_model(fixture.config, fixture.weights, isa, threads=2) as model:
        logits = logits_of(model, fixture.tokens)
    assert np.median(np.abs(logits - expected)) < 1e-4
    np.testing.assert_allclose(logits, expected, atol=TRANSFORMERS_ROUNDING / 4, rtol=0)


@each_isa
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_greedy_text_equals_what_llama2_c_expects(
    data: Path, isa: Isa, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_isa(monkeypatch, isa)
    with Llama2cCheckpoint(data / "models" / "stories260K.bin") as checkpoint:
        model = load_model(checkpoint, max_seq_len=256, threads=threads)
    generated = greedy(model, [1], 200)
    model.close()
    tokenizer = SentencePieceProcessor(str(data / "models" / "tok512.model"))
    expected = (GOLDEN / "stories260K.txt").read_text(encoding="utf-8")
    assert tokenizer.decode(generated) == expected


@each_exact_isa
def test_stored_rope_factors_equal_the_scaling_that_they_state(isa: Isa) -> None:
    scaled = tiny_config(head_dim=20, rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 64))
    plain = tiny_config(head_dim=20)
    weights = random_weights(plain)
    factors = (rope_frequencies(plain) / rope_frequencies(scaled)).astype(np.float32)
    results = []
    for config, extra in ((plain, {ROPE_FACTORS: factors}), (scaled, {}), (plain, {})):
        with cpu_model(config, weights | extra, isa) as model:
            results.append(logits_of(model, range(70)))
    stored, computed, unscaled = results
    np.testing.assert_allclose(stored, computed, atol=1e-2)
    assert np.max(np.abs(unscaled - computed)) > 0.1


@each_isa
@each_type
def test_a_stored_type_needs_no_conversion(isa: Isa, kind: TensorType) -> None:
    config = tiny_config()
    weights = random_weights(config)
    with cpu_model(config, weights, isa, kind) as model:
        converted = logits_of(model, range(5))
    with pytest.MonkeyPatch.context() as patch:
        use_isa(patch, isa)
        checkpoint = MemoryCheckpoint(config, weights, kind)
        model = load_model(checkpoint, max_seq_len=96, threads=1)
    np.testing.assert_array_equal(logits_of(model, range(5)), converted)
    model.close()


# --- every type as it is stored ----------------------------------------------------------------


WIDE = tiny_config(dim=256, head_dim=64, n_heads=4, n_kv_heads=2, ffn_dim=512)
"""Rows of whole super-blocks."""


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_model_of_every_type_equals_the_reference(kind: TensorType) -> None:
    checkpoint = StoredCheckpoint(WIDE, kind, WEIGHT_STD)
    matmul = ops.matmul
    if kind in QUANTISED:
        matmul = partial(ops.matmul_int8, block=activation_block(kind))
    reference = ReferenceModel(WIDE, checkpoint.numbers, 3, kv_dtype=np.float16, matmul=matmul)
    tokens = np.random.default_rng(3).integers(0, WIDE.vocab_size, 40).tolist()
    expected = logits_of(reference, tokens)
    model = load_model(checkpoint, max_seq_len=96, threads=2)
    whole = logits_of(model, tokens)
    errors = np.abs(whole - expected) / expected.std()
    assert np.median(errors) < 1e-2
    assert errors.max() < 0.5
    one_by_one = np.concatenate(
        [model.forward(Batch((chunk_of([token], i),))) for i, token in enumerate(tokens)]
    )
    np.testing.assert_array_equal(one_by_one, whole)
    model.close()


# --- sizes ------------------------------------------------------------------------------------


def padded(rows: int, cols: int) -> int:
    """Return the numbers of a packed matrix."""
    return -(-rows // 16) * 16 * (-(-cols // 32) * 32)


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_says_what_it_holds_and_reads(tied: bool) -> None:
    config = tiny_config(vocab_size=101, head_dim=20)
    weights = random_weights(config, tied=tied)
    with cpu_model(config, weights, chosen(), TensorType.F16, max_seq_len=65) as model:
        matrices = [values.shape for values in weights.values() if values.ndim == 2]
        assert model.weight_bytes == 2 * sum(padded(*shape) for shape in matrices)
        unread = 0 if tied else 2 * padded(101, 64)
        assert model.decode_bytes == model.weight_bytes - unread
        layers = key_and_value = half_bytes = kv_heads = 2
        assert model.kv_bytes_per_token == layers * key_and_value * half_bytes * kv_heads * 32
        assert model.n_blocks == 3
        assert model.max_batch_tokens == 65
        assert model.max_seq_len == 65


@pytest.mark.parametrize(
    ("kv_type", "head_bytes"),
    [(TensorType.F32, 4 * 48), (TensorType.F16, 2 * 48), (TensorType.Q8_0, 2 * 34)],
    ids=str,
)
def test_the_bytes_of_a_cache_follow_its_type(kv_type: TensorType, head_bytes: int) -> None:
    config = tiny_config(head_dim=40)
    with cpu_model(config, random_weights(config), chosen(), kv_type=kv_type) as model:
        layers = key_and_value = kv_heads = 2
        assert model.kv_bytes_per_token == layers * key_and_value * kv_heads * head_bytes
