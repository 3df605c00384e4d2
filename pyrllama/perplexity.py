"""How well a model predicts a text: perplexity by llama.cpp's method, and bits per byte.

Of every chunk of the text (``text_chunks.py``) the tokens of the second half are scored, so
that each has at least half a context before it.  Source: ``tools/perplexity`` of llama.cpp.

With ``n`` scored tokens of negative log-likelihood ``x``:  perplexity = exp(mean x), and its
standard error is that of the mean times the perplexity.  Perplexities of models with different
vocabularies cannot be compared; bits per byte can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pyrllama.engine import Engine
    from pyrllama.text_chunks import TextChunks
    from pyrllama.tokenizer import Tokenizer

    Tap = Callable[[NDArray[np.float32]], None]
    """Called with the logits of the scored tokens as they come, ``(rows, vocab)``."""

SLICE_NUMBERS = 1 << 16
"""Logits taken at once: their float64 copies stay in the cache."""
_LARGEST_EXPONENT = 709.0
"""Over it ``exp`` is beyond float64."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The result over the chunks scored so far."""

    context: int
    """Tokens of a chunk."""
    chunks: int
    """Chunks scored."""
    of_chunks: int
    """Chunks that will be scored in all."""
    text_tokens: int
    """Tokens of the whole text."""
    tokens: int
    """Tokens scored."""
    bytes: int
    """UTF-8 bytes of the text of the scored tokens."""
    nats: float
    """Sum of the negative log-likelihoods of the scored tokens."""
    squares: float
    """Sum of their squares."""

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of ``nats_per_token``; infinite beyond float64."""
        mean = self.nats_per_token
        return math.exp(mean) if mean <= _LARGEST_EXPONENT else math.inf

    @property
    def standard_error(self) -> float:
        """The standard error of ``perplexity``."""
        variance = self.squares / self.tokens - self.nats_per_token**2
        return self.perplexity * math.sqrt(max(variance, 0.0) / (self.tokens - 1))

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of the text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.inf


class Tally:
    """Adds up the losses of a text's tokens, chunk by chunk."""

    def __init__(self, text: TextChunks, tokenizer: Tokenizer) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self._chunks = self._tokens = self._bytes = 0
        self._nats = self._squares = 0.0

    def add(self, losses: NDArray[np.float64]) -> Perplexity:
        """Add the next chunk's losses, ``(scored,)``, and return the result so far.

        Raises ``BackendError`` for losses that are not finite.
        """
        spelled = map(self._tokenizer.token_bytes, self._text.targets(self._chunks).tolist())
        self._bytes += sum(map(len, spelled))
        self._chunks += 1
        self._tokens += len(losses)
        self._nats += float(losses.sum())
        self._squares += float(losses @ losses)
        if not math.isfinite(self._nats):
            raise BackendError(
                f"chunk {self._chunks} of the text has a logit that is not a finite number; the "
                f"weights are damaged or overflow in their type: try --f32"
            )
        return Perplexity(
            context=self._text.context,
            chunks=self._chunks,
            of_chunks=self._text.count,
            text_tokens=len(self._text.tokens),
            tokens=self._tokens,
            bytes=self._bytes,
            nats=self._nats,
            squares=self._squares,
        )


def measure(
    engine: Engine, tokenizer: Tokenizer, text: TextChunks, tap: Tap | None = None
) -> Iterator[Perplexity]:
    """Score a text and yield the result so far after every chunk.

    Raises ``BackendError`` for logits that are not finite.
    """
    tally = Tally(text, tokenizer)
    for number in range(text.count):
        yield tally.add(score_chunk(engine, text, number, tap))


def score_chunk(
    engine: Engine, text: TextChunks, number: int, tap: Tap | None = None
) -> NDArray[np.float64]:
    """Return the negative log-likelihoods of the tokens in a chunk's second half, ``(scored,)``."""
    inputs = text.inputs(number)[:-1]  # the last token is only predicted
    targets = text.targets(number)
    losses = np.empty(len(targets))
    for position, logits in engine.logit_batches(inputs, text.first):
        start = position - text.first
        end = start + len(logits)
        losses[start:end] = negative_log_likelihoods(logits, targets[start:end])
        if tap is not None:
            tap(logits)
    return losses


def negative_log_likelihoods(
    logits: NDArray[np.float32], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return ``-log softmax(logits)[target]`` of every row, computed in float64.

    ``logits`` is ``(rows, vocab)``, ``targets`` and the result ``(rows,)``.
    """
    losses = np.empty(len(logits))
    step = max(1, SLICE_NUMBERS // logits.shape[1])
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller looks for
        for start in range(0, len(logits), step):
            rows = logits[start : start + step]
            shifted = np.subtract(rows, rows.max(axis=1, keepdims=True), dtype=np.float64)
            chosen = np.take_along_axis(shifted, targets[start : start + step, None], axis=1)
            np.exp(shifted, out=shifted)
            losses[start : start + step] = np.log(shifted.sum(axis=1)) - chosen[:, 0]
    return losses
