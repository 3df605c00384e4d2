"""KL divergence against a plain computation, its invariants, and what cannot be compared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_model import BOS, VOCAB_SIZE, ByteTokenizer, FakeModel

import pyrllama
from pyrllama.divergence import Divergence, log_softmax
from pyrllama.errors import BackendError, ComparisonError, PromptError, SettingError
from pyrllama.llama import Llama

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.core import Batch

TEXT = "Once upon a time there was a little dog. He had a red ball and liked to play. " * 3
CONTEXT = 40


class Noise(FakeModel):
    """A model whose logits are noise that depends on all tokens so far, and another noise."""

    def __init__(self, other: float = 0.0, max_batch_tokens: int = 16) -> None:
        super().__init__(max_batch_tokens=max_batch_tokens)
        self._other = other

    def _row(self, text: NDArray[np.int64]) -> NDArray[np.float32]:
        row = np.random.default_rng(text).standard_normal(VOCAB_SIZE) * 3
        other = np.random.default_rng([1, *text]).standard_normal(VOCAB_SIZE)
        return (row + self._other * other).astype(np.float32)


def llama_of(model: FakeModel, tokenizer: ByteTokenizer | None = None) -> Llama:
    return Llama(model, tokenizer or ByteTokenizer(), max_seq_len=64)


def plain(model: Noise, base: Noise) -> tuple[list[float], list[float], int]:
    """Return KL divergences, differences of losses and equal tops, row by row."""
    tokens = ByteTokenizer().encode(TEXT, bos=True)
    divergences, differences, same = [], [], 0
    for start in range(0, len(tokens) // CONTEXT * CONTEXT, CONTEXT):
        chunk = [BOS, *tokens[start + 1 : start + CONTEXT]]
        for position in range(CONTEXT // 2, CONTEXT - 1):
            text = np.array(chunk[: position + 1])
            q, p = plain_softmax(model._row(text)), plain_softmax(base._row(text))
            divergences.append(math.fsum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
            target = chunk[position + 1]
            differences.append(math.log(p[target]) - math.log(q[target]))
            same += q.index(max(q)) == p.index(max(p))
    return divergences, differences, same


def plain_softmax(row: NDArray[np.float32]) -> list[float]:
    exponentials = [math.exp(x) for x in row.tolist()]
    total = math.fsum(exponentials)
    return [x / total for x in exponentials]


def test_it_follows_the_method() -> None:
    # The two give their rows in pieces of different sizes.
    model, base = Noise(0.7), Noise(max_batch_tokens=24)
    result = llama_of(model).divergence(TEXT, llama_of(base), context=CONTEXT)
    divergences, differences, same = plain(model, base)
    np.testing.assert_allclose(result.kl, divergences, rtol=1e-10)
    np.testing.assert_allclose(result.differences, differences, rtol=1e-9, atol=1e-12)
    n = len(divergences)
    assert n == result.model.tokens == result.base.tokens == 5 * 19
    assert result.mean == pytest.approx(sum(divergences) / n)
    assert result.standard_error == pytest.approx(np.std(divergences, ddof=1) / math.sqrt(n))
    assert result.maximum == max(result.kl)
    ordered = sorted(result.kl.tolist())
    assert result.quantile(0.5) == ordered[47]
    # Of 95 values the one at 0.99 is 0.06 of the way from the 94th to the 95th.
    assert result.quantile(0.99) == pytest.approx(0.94 * ordered[93] + 0.06 * ordered[94])
    assert result.same_top == same
    assert 0 < same < n
    assert result.same_top_share == same / n
    share = same / n
    assert result.same_top_standard_error == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)))
    assert result.ratio == pytest.approx(result.model.perplexity / result.base.perplexity)
    error = np.std(differences, ddof=1) / math.sqrt(n)
    assert result.ratio_standard_error == pytest.approx(result.ratio * error)


def test_both_perplexities_are_those_of_each_alone() -> None:
    model, base = llama_of(Noise(0.7)), llama_of(Noise())
    result = model.divergence(TEXT, base, context=CONTEXT)
    for part, alone in ((result.model, model), (result.base, base)):
        expected = alone.perplexity(TEXT, context=CONTEXT)
        assert part.perplexity == pytest.approx(expected.perplexity, rel=1e-12)
        assert part.standard_error == pytest.approx(expected.standard_error, rel=1e-9)
        assert part.bytes == expected.bytes


def test_a_model_does_not_diverge_from_itself() -> None:
    result = llama_of(Noise()).divergence(TEXT, llama_of(Noise()), context=CONTEXT)
    assert result.maximum == result.mean == 0
    assert (result.ratio, result.ratio_standard_error, result.same_top_share) == (1, 0, 1)


def test_saved_logits_give_what_the_model_gives(tmp_path: Path) -> None:
    model, base = llama_of(Noise(0.7)), llama_of(Noise())
    path = tmp_path / "base.logits"
    alone = base.perplexity(TEXT, context=CONTEXT, save_logits=path)
    assert alone == base.perplexity(TEXT, context=CONTEXT)
    expected = model.divergence(TEXT, base, context=CONTEXT)
    for text in (TEXT, None):
        result = model.divergence(text, path)
        np.testing.assert_allclose(result.kl, expected.kl, atol=3e-4)
        assert result.model.nats == expected.model.nats
        assert result.base.perplexity == pytest.approx(alone.perplexity, rel=1e-4)
        assert result.same_top == expected.same_top
    np.testing.assert_allclose(base.divergence(None, path).kl, 0, atol=3e-4)


def test_every_chunk_yields_the_result_so_far() -> None:
    model, base = llama_of(Noise(0.7)), llama_of(Noise())
    seen: list[Divergence] = []
    whole = model.divergence(TEXT, base, context=CONTEXT, progress=seen.append)
    assert [result.model.chunks for result in seen] == [1, 2, 3, 4, 5]
    assert [len(result.kl) for result in seen] == [19, 38, 57, 76, 95]
    part = model.divergence(TEXT, base, context=CONTEXT, chunks=2)
    assert part.kl.tolist() == seen[1].kl.tolist() == whole.kl[:38].tolist()
    assert part.mean == seen[1].mean


def test_the_caches_are_free_again() -> None:
    model, base = llama_of(Noise(0.7)), llama_of(Noise(max_batch_tokens=64))
    free = model._engine.free_blocks, base._engine.free_blocks
    model.divergence(TEXT, base, context=CONTEXT)
    assert (model._engine.free_blocks, base._engine.free_blocks) == free


def test_only_one_pass_of_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def watched(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        sizes.append(rows.size)
        return log_softmax(rows)

    monkeypatch.setattr("pyrllama.divergence.log_softmax", watched)
    monkeypatch.setattr("pyrllama.divergence.SLICE_NUMBERS", 5 * VOCAB_SIZE)
    result = llama_of(Noise(0.7)).divergence(TEXT, llama_of(Noise()), context=CONTEXT)
    assert result.model.tokens == 95
    assert max(sizes) == 5 * VOCAB_SIZE


# --- what cannot be compared ------------------------------------------------------------------


def test_other_vocabularies() -> None:
    class Larger(ByteTokenizer):
        def _encode(self, text: str, special: bool) -> list[int]:
            return [token ^ 1 for token in text.encode()]

    base = FakeModel()
    base.config = base.config.__class__("fake", 300, 4, 1, 1, 1, 4, 4, 1e-5, 1e4, 4096)
    with pytest.raises(ComparisonError, match="a vocabulary of 258 tokens, the base one of 300"):
        llama_of(Noise()).divergence(TEXT, llama_of(base), context=CONTEXT)
    with pytest.raises(ComparisonError, match="reads the text as other tokens from token 1 on"):
        llama_of(Noise()).divergence(TEXT, llama_of(Noise(), Larger()), context=CONTEXT)


def test_another_bos() -> None:
    class Second(ByteTokenizer):
        def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
            return ByteTokenizer().encode(text, bos=bos, special=special)

    with pytest.raises(ComparisonError, match="begins with token 256 for the model, but with 257"):
        llama_of(Noise()).divergence(TEXT, llama_of(Noise(), Second(bos_id=257)), context=CONTEXT)


def test_a_base_with_a_shorter_context() -> None:
    base = Llama(Noise(), ByteTokenizer(), max_seq_len=32)
    with pytest.raises(SettingError, match="context is 40, but it must be from 8 to 32"):
        llama_of(Noise()).divergence(TEXT, base, context=CONTEXT)
    assert llama_of(Noise()).divergence(TEXT, base, chunks=1).model.context == 32


def test_no_text() -> None:
    with pytest.raises(PromptError, match="there is no text to compare the models on"):
        llama_of(Noise()).divergence(None, llama_of(Noise()))


@pytest.mark.parametrize("broken", ["model", "base"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers(value: float, broken: str) -> None:
    class Broken(Noise):
        def forward(self, batch: Batch) -> NDArray[np.float32]:
            logits = super().forward(batch)
            logits[..., 5] = value
            return logits

    pair = (Broken(), Noise()) if broken == "model" else (Noise(), Broken())
    model, base = map(llama_of, pair)
    with pytest.raises(BackendError, match="chunk 1 of the text has a logit that is not a finite"):
        model.divergence(TEXT, base, context=CONTEXT)


def test_what_one_rules_out() -> None:
    class Certain(Noise):
        def forward(self, batch: Batch) -> NDArray[np.float32]:
            logits = super().forward(batch)
            logits[..., 5] = -np.inf
            return logits

    with pytest.raises(BackendError, match="rules out what the base finds possible"):
        llama_of(Certain()).divergence(TEXT, llama_of(Noise()), context=CONTEXT)
    assert llama_of(Noise()).divergence(TEXT, llama_of(Certain()), context=CONTEXT).mean > 0


def test_fewer_bits_diverge_further(data: Path) -> None:
    text = (data / "text" / "tinystories_valid.txt").read_text(encoding="utf-8")[:4000]
    stories = data / "models" / "stories260K.bin"
    found = {}
    with pyrllama.load(stories, max_seq_len=128) as base:
        for kind in ("f32", "q8_0", "q4_0"):
            with pyrllama.load(stories, quantize=kind, max_seq_len=128) as llama:
                found[kind] = llama.divergence(text, base, context=128, chunks=4)
    assert found["f32"].mean == 0
    assert 0 < found["q8_0"].mean < 1e-3 < 1e-2 < found["q4_0"].mean < 1
    assert found["q8_0"].same_top_share > found["q4_0"].same_top_share > 0.5
