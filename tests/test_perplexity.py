"""Perplexity against a plain computation over the reference, and its bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_model import BOS, VOCAB_SIZE, ByteTokenizer, FakeModel

import pyrllama
from pyrllama.engine import Engine
from pyrllama.errors import BackendError, PromptError, SettingError
from pyrllama.llama import Llama
from pyrllama.perplexity import Perplexity, measure, negative_log_likelihoods, score_chunk
from pyrllama.text_chunks import TextChunks, cut_text

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.core import Batch

TEXT = "Once upon a time there was a little dog. He had a red ball and liked to play. " * 12


class RandomModel(FakeModel):
    """A model whose logits are noise that depends on all tokens so far."""

    scale = 3.0

    def _row(self, text: NDArray[np.int64]) -> NDArray[np.float32]:
        generator = np.random.default_rng(text)
        return (generator.standard_normal(VOCAB_SIZE) * self.scale).astype(np.float32)


def plain_losses(tokens: list[int], context: int, bos: int | None) -> list[float]:
    """Return the losses of all scored tokens, computed row by row as the method is written."""
    losses = []
    for start in range(0, len(tokens) // context * context, context):
        chunk = tokens[start : start + context]
        inputs = chunk if bos is None else [bos, *chunk[1:]]
        for position in range(context // 2, context - 1):
            row = RandomModel()._row(np.array(inputs[: position + 1])).astype(np.float64)
            total = math.fsum(math.exp(x) for x in row.tolist())
            losses.append(math.log(total) - row[chunk[position + 1]])
    return losses


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("context", [40, 41, 64])
def test_it_follows_the_method(context: int, add_bos: bool) -> None:
    tokenizer = ByteTokenizer(add_bos=add_bos)
    llama = Llama(RandomModel(), tokenizer, max_seq_len=64)
    result = llama.perplexity(TEXT[:300], context=context)
    tokens = llama.tokenize(TEXT[:300])
    losses = plain_losses(tokens, context, BOS if add_bos else None)
    n_chunks = len(tokens) // context
    assert result.chunks == result.of_chunks == n_chunks
    assert result.tokens == len(losses) == n_chunks * (context - context // 2 - 1)
    assert result.text_tokens == 300 + add_bos
    assert result.bytes == result.tokens  # a token is a byte here
    mean = math.fsum(losses) / len(losses)
    assert result.nats_per_token == pytest.approx(mean, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-12)
    deviation = np.std(losses, ddof=1) / math.sqrt(len(losses))
    assert result.standard_error == pytest.approx(math.exp(mean) * deviation, rel=1e-9)
    assert result.bits_per_byte == pytest.approx(mean / math.log(2), rel=1e-12)


def test_every_chunk_yields_the_result_so_far() -> None:
    llama = Llama(RandomModel(), ByteTokenizer(), max_seq_len=64)
    seen: list[Perplexity] = []
    whole = llama.perplexity(TEXT[:200], context=40, progress=seen.append)
    assert [result.chunks for result in seen] == [1, 2, 3, 4, 5]
    assert seen[-1] == whole
    part = llama.perplexity(TEXT[:200], context=40, chunks=2)
    assert part == replace(seen[1], of_chunks=2)


def test_only_the_scored_rows_are_computed() -> None:
    model = RandomModel(n_blocks=2, max_batch_tokens=16)
    score_chunk(Engine(model, 64), TextChunks(np.arange(64), 64, 1, None), 0)
    outputs = [chunk.outputs for batch in model.batches for chunk in batch.chunks]
    assert outputs == [0, 0, 16, 15]  # positions 32 to 62 predict tokens 33 to 63


def test_the_cache_is_free_again() -> None:
    engine = Engine(RandomModel(), 64)
    free = engine.free_blocks
    tokenizer = ByteTokenizer()
    results = measure(engine, tokenizer, cut_text(tokenizer, TEXT, 64, context=40))
    next(results)
    assert engine.free_blocks == free


def test_the_default_context_is_that_of_llama_cpp_or_less() -> None:
    llama = Llama(RandomModel(), ByteTokenizer(), max_seq_len=64)
    assert llama.perplexity(TEXT, chunks=1).context == 64
    long = Llama(RandomModel(n_blocks=32, max_batch_tokens=1024), ByteTokenizer(), max_seq_len=1024)
    assert long.perplexity(TEXT * 2, chunks=1).context == 512


def test_log_likelihoods_are_those_of_float64() -> None:
    generator = np.random.default_rng(0)
    logits = (generator.standard_normal((300, 1000)) * 20 + 500).astype(np.float32)
    targets = generator.integers(1000, size=300)
    exact = logits.astype(np.longdouble)
    exact = np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1)) + exact.max(1)
    expected = exact - logits[np.arange(300), targets]
    found = negative_log_likelihoods(logits, targets)
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-13, atol=1e-13)


def test_a_model_without_a_clue_is_infinitely_perplexed() -> None:
    result = Perplexity(8, 1, 1, 16, tokens=3, bytes=0, nats=3000.0, squares=3e6)
    assert result.perplexity == math.inf
    assert result.bits_per_byte == math.inf


@pytest.mark.parametrize(
    ("context", "chunks", "name"),
    [(7, None, "context"), (65, None, "context"), (40, 0, "chunks")],
)
def test_settings_out_of_range(context: int, chunks: int | None, name: str) -> None:
    llama = Llama(RandomModel(), ByteTokenizer(), max_seq_len=64)
    with pytest.raises(SettingError) as caught:
        llama.perplexity(TEXT, context=context, chunks=chunks)
    assert caught.value.name == name


@pytest.mark.parametrize("text", ["", "short", TEXT[:78]])
def test_a_text_that_is_too_short(text: str) -> None:
    llama = Llama(RandomModel(), ByteTokenizer(), max_seq_len=64)
    said = f"the text has {len(text) + 1} tokens, but a measurement at a context of 40 needs 80"
    with pytest.raises(PromptError, match=said):
        llama.perplexity(text, context=40)
    assert llama.perplexity(TEXT[:79], context=40).chunks == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers(value: float) -> None:
    class Broken(RandomModel):
        def forward(self, batch: Batch) -> NDArray[np.float32]:
            logits = super().forward(batch)
            logits[..., 5] = value
            return logits

    llama = Llama(Broken(), ByteTokenizer(), max_seq_len=64)
    with pytest.raises(BackendError, match="chunk 1 of the text has a logit that is not a finite"):
        llama.perplexity(TEXT, context=40)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_trained_model_predicts_its_stories(data: Path, backend: str) -> None:
    text = (data / "text" / "tinystories_valid.txt").read_text(encoding="utf-8")[:6000]
    with pyrllama.load(data / "models" / "stories260K.bin", backend=backend) as llama:
        result = llama.perplexity(text, context=128, chunks=4)
    assert result.tokens == 4 * 63
    assert 2.5 < result.perplexity < 5
    assert 0.7 < result.bits_per_byte < 1.1
