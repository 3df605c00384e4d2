"""How far a model's predictions are from those of another one of the same vocabulary.

Over the tokens that a perplexity scores (``perplexity.py``), with ``p`` the base's and ``q`` the
model's distribution of the next token:  KL = sum of p log(p / q), in nats, which is 0 where both
agree.  It says what was lost more exactly than perplexity, which sees one token of each
distribution and falls by luck as easily as it rises.

The ratio of the perplexities is exp of the mean difference of losses token by token, and its
standard error that of these differences: what both find hard cancels out.

Source: Kullback and Leibler, On Information and Sufficiency, 1951; the figures are those of
``llama-perplexity --kl-divergence``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pyrllama.errors import BackendError, ComparisonError, PromptError
from pyrllama.perplexity import SLICE_NUMBERS, Perplexity, Tally
from pyrllama.text_chunks import check_same_tokens, cut_text, starting_bos

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pyrllama.engine import Engine
    from pyrllama.text_chunks import TextChunks
    from pyrllama.tokenizer import Tokenizer

    Rows = NDArray[np.float32]


class Base(Protocol):
    """What a model is compared with."""

    vocab_size: int
    floor: float
    """Log-probabilities that are not over it count as none."""

    def text(
        self, tokenizer: Tokenizer, text: str | None, longest: int,
        *, context: int | None, chunks: int | None,
    ) -> TextChunks:  # fmt: skip
        """Cut a text for a model's tokenizer and the base's own.

        The settings are those of ``cut_text``.  Raises ``ComparisonError`` for what the two
        cannot be compared on.
        """
        ...

    def batches(self, text: TextChunks, number: int) -> Iterator[Rows]:
        """Yield rows over the vocabulary for a chunk's scored tokens, in order, some at a time."""
        ...

    def log_probabilities(self, rows: Rows) -> NDArray[np.float64]:
        """Return the log-probabilities that such rows stand for."""
        ...


class ModelBase:
    """A model as the base of a comparison; its rows are logits."""

    floor = -math.inf

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.vocab_size = engine.model.config.vocab_size
        self._engine = engine
        self._tokenizer = tokenizer

    def text(
        self, tokenizer: Tokenizer, text: str | None, longest: int,
        *, context: int | None, chunks: int | None,
    ) -> TextChunks:  # fmt: skip
        """Cut a text that both models must read as the same tokens."""
        if text is None:
            raise PromptError("there is no text to compare the models on; give one")
        longest = min(longest, self._engine.max_seq_len)
        cut = cut_text(tokenizer, text, longest, context=context, chunks=chunks)
        base = self._tokenizer
        theirs = np.array(base.encode(text, bos=base.add_bos), np.int64)
        check_same_tokens(cut.tokens, theirs, "the base reads the text as other tokens")
        if cut.bos != starting_bos(base):
            raise ComparisonError(
                f"a chunk begins with token {cut.bos} for the model, but with "
                f"{starting_bos(base)} for the base; only models that are trained with the same "
                f"can be compared"
            )
        return cut

    def batches(self, text: TextChunks, number: int) -> Iterator[Rows]:
        """Yield the logits of a chunk's scored tokens, as many rows as a pass gives."""
        inputs = text.inputs(number)[:-1]
        return (rows for _, rows in self._engine.logit_batches(inputs, text.first))

    def log_probabilities(self, rows: Rows) -> NDArray[np.float64]:
        """Return ``log softmax`` of every row."""
        return log_softmax(rows)


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """The result over the chunks compared so far."""

    model: Perplexity
    base: Perplexity
    kl: NDArray[np.float64]
    """The divergence at each scored token, nats, ``(tokens,)``."""
    differences: NDArray[np.float64]
    """The model's loss of each scored token less the base's, ``(tokens,)``."""
    same_top: int
    """Tokens at which both find the same successor likeliest."""

    @property
    def mean(self) -> float:
        """Mean KL divergence."""
        return float(self.kl.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of ``mean``."""
        return _standard_error(self.kl)

    @property
    def maximum(self) -> float:
        """The largest KL divergence."""
        return float(self.kl.max())

    def quantile(self, share: float) -> float:
        """Return the divergence that ``share`` of the tokens do not exceed; 0.5 is the median."""
        return float(np.quantile(self.kl, share))

    @property
    def same_top_share(self) -> float:
        """The share of the tokens at which both find the same successor likeliest."""
        return self.same_top / len(self.kl)

    @property
    def same_top_standard_error(self) -> float:
        """The standard error of ``same_top_share``."""
        share = self.same_top_share
        return math.sqrt(share * (1 - share) / (len(self.kl) - 1))

    @property
    def ratio(self) -> float:
        """The model's perplexity over the base's."""
        return float(np.exp(self.differences.mean()))

    @property
    def ratio_standard_error(self) -> float:
        """The standard error of ``ratio``."""
        return self.ratio * _standard_error(self.differences)


def check_vocabularies(vocab_size: int, base_vocab_size: int) -> None:
    """Raise ``ComparisonError`` for vocabularies of different sizes."""
    if vocab_size != base_vocab_size:
        raise ComparisonError(
            f"the model has a vocabulary of {vocab_size} tokens, the base one of "
            f"{base_vocab_size}; only models of the same vocabulary can be compared"
        )


def measure_divergence(
    engine: Engine, tokenizer: Tokenizer, text: TextChunks, base: Base
) -> Iterator[Divergence]:
    """Compare a model with a base on a text and yield the result so far after every chunk.

    Of either only the logits of one pass are in memory.  Raises ``BackendError`` for logits that
    are not finite.
    """
    tallies = Tally(text, tokenizer), Tally(text, tokenizer)
    kl, differences = np.empty((2, text.count * text.scored))
    same_top = 0
    for number in range(text.count):
        start, end = number * text.scored, (number + 1) * text.scored
        compared = _compare_chunk(engine, text, number, base)
        model, other = (
            tally.add(losses) for tally, losses in zip(tallies, compared[:2], strict=True)
        )
        kl[start:end], differences[start:end] = compared[2], compared[0] - compared[1]
        same_top += int(compared[3].sum())
        if not np.isfinite(kl[start:end]).all():
            raise BackendError(
                f"chunk {number + 1} of the text has a KL divergence that is not a finite number: "
                f"the model rules out what the base finds possible"
            )
        yield Divergence(model, other, kl[:end], differences[:end], same_top)


def _compare_chunk(
    engine: Engine, text: TextChunks, number: int, base: Base
) -> NDArray[np.float64]:
    """Return losses, the base's losses, KL divergences and equal tops: ``(4, scored)``."""
    targets = text.targets(number)
    compared = np.empty((4, text.scored))
    inputs = text.inputs(number)[:-1]
    ours = (rows for _, rows in engine.logit_batches(inputs, text.first))
    start = 0
    for rows, base_rows in _in_step(ours, base.batches(text, number)):
        end = start + len(rows)
        compared[:, start:end] = _compare(rows, base_rows, targets[start:end], base)
        start = end
    return compared


def _in_step(first: Iterator[Rows], second: Iterator[Rows]) -> Iterator[tuple[Rows, Rows]]:
    """Cut two streams of equally many rows into pairs of pieces, small enough for the cache."""
    a = b = np.empty((0, 1), np.float32)
    while True:
        a = next(first, a) if not len(a) else a
        b = next(second, b) if not len(b) else b
        if not len(a):
            return
        n = min(len(a), len(b), max(1, SLICE_NUMBERS // a.shape[1]))
        yield a[:n], b[:n]
        a, b = a[n:], b[n:]


def _compare(
    rows: Rows, base_rows: Rows, targets: NDArray[np.int64], base: Base
) -> tuple[NDArray[np.float64], ...]:
    """Return losses, the base's losses, KL divergences and equal tops of some rows."""
    q, p = log_softmax(rows), base.log_probabilities(base_rows)
    chosen = targets[:, None]
    losses, base_losses = (-np.take_along_axis(x, chosen, axis=1)[:, 0] for x in (q, p))
    with np.errstate(invalid="ignore"):
        terms = np.multiply(np.exp(p), p - q, where=p > base.floor, out=np.zeros_like(p))
    same_top = rows.argmax(axis=1) == base_rows.argmax(axis=1)
    return losses, base_losses, terms.sum(axis=1), same_top.astype(np.float64)


def log_softmax(rows: Rows) -> NDArray[np.float64]:
    """Return ``log softmax`` of every row in float64; infinite logits give NaN."""
    with np.errstate(invalid="ignore"):
        shifted = np.subtract(rows, rows.max(axis=1, keepdims=True), dtype=np.float64)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))
