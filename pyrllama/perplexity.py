"""How well a model predicts a text: perplexity by llama.cpp's method, and bits per byte.

The text is tokenised once and cut into chunks as long as the context; what is left over at
its end is not used.  Every chunk goes through the model by itself, with BOS in the place of
its first token if the model is trained so, and the tokens of its second half are scored, so
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

from pyrllama.errors import BackendError, PromptError, SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pyrllama.engine import Engine
    from pyrllama.tokenizer import Tokenizer

DEFAULT_CONTEXT = 512
"""Tokens of a chunk unless told otherwise, as in llama.cpp."""
MIN_CONTEXT = 8
"""Fewer would leave too few scored tokens in a chunk for a standard error."""
_SLICE_NUMBERS = 1 << 16
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


def measure(
    engine: Engine,
    tokenizer: Tokenizer,
    text: str,
    *,
    context: int | None = None,
    chunks: int | None = None,
) -> Iterator[Perplexity]:
    """Score a text and yield the result so far after every chunk.

    ``context`` is by default 512, or the engine's if that is less; ``chunks`` stops after so
    many.  Raises ``SettingError`` for a context or a count that is out of range, and
    ``PromptError`` for a text of less than two contexts.
    """
    context = _checked_context(context, engine.max_seq_len)
    tokens = tokenizer.encode(text, bos=tokenizer.add_bos)
    if len(tokens) < 2 * context:
        raise PromptError(
            f"the text has {len(tokens)} tokens, but perplexity at a context of {context} needs "
            f"{2 * context}; give a longer text or a context of at most {len(tokens) // 2}"
        )
    count = len(tokens) // context
    if chunks is not None:
        if chunks < 1:
            raise SettingError("chunks", chunks, "a whole number from 1 upwards")
        count = min(count, chunks)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    scored = n_bytes = 0
    nats = squares = 0.0
    for number in range(count):
        chunk = tokens[number * context : (number + 1) * context]
        losses = score_chunk(engine, chunk, bos)
        targets = chunk[-len(losses) :]
        scored += len(losses)
        n_bytes += sum(len(tokenizer.token_bytes(token)) for token in targets)
        nats += float(losses.sum())
        squares += float(losses @ losses)
        if not math.isfinite(nats):
            raise BackendError(
                f"chunk {number + 1} of the text has a logit that is not a finite number; the "
                f"weights are damaged or overflow in their type: try --f32"
            )
        yield Perplexity(context, number + 1, count, len(tokens), scored, n_bytes, nats, squares)


def score_chunk(engine: Engine, chunk: Sequence[int], bos: int | None) -> NDArray[np.float64]:
    """Return the negative log-likelihoods of the tokens in a chunk's second half.

    Of a chunk of ``n`` tokens these are the ones from ``n // 2 + 1`` on.
    """
    first = len(chunk) // 2
    inputs = list(chunk[:-1])  # the last token is only predicted
    if bos is not None:
        inputs[0] = bos
    targets = np.array(chunk[first + 1 :])
    losses = np.empty(len(targets))
    for position, logits in engine.logit_batches(inputs, first):
        start = position - first
        end = start + len(logits)
        losses[start:end] = negative_log_likelihoods(logits, targets[start:end])
    return losses


def negative_log_likelihoods(
    logits: NDArray[np.float32], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return ``-log softmax(logits)[target]`` of every row, computed in float64.

    ``logits`` is ``(rows, vocab)``, ``targets`` and the result ``(rows,)``.
    """
    losses = np.empty(len(logits))
    step = max(1, _SLICE_NUMBERS // logits.shape[1])
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller looks for
        for start in range(0, len(logits), step):
            rows = logits[start : start + step]
            shifted = np.subtract(rows, rows.max(axis=1, keepdims=True), dtype=np.float64)
            chosen = np.take_along_axis(shifted, targets[start : start + step, None], axis=1)
            np.exp(shifted, out=shifted)
            losses[start : start + step] = np.log(shifted.sum(axis=1)) - chosen[:, 0]
    return losses


def _checked_context(context: int | None, longest: int) -> int:
    if context is None:
        context = min(DEFAULT_CONTEXT, longest)
    if not MIN_CONTEXT <= context <= longest:
        raise SettingError("context", context, f"from {MIN_CONTEXT} to {longest}")
    return context
