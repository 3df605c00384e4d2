"""Files of a model's log-probabilities over a text, exchanged with llama.cpp.

``llama-perplexity --kl-divergence-base FILE`` writes and reads them.  All is little-endian:

    offset  bytes
    0       8                  "_logits_"
    8       4                  context: tokens of a chunk
    12      4                  tokens of the vocabulary
    16      4                  chunks
    20      4 a token          ids of all chunks
    then    2 (4 + vocab) each of every chunk's scored tokens, one row; vocab rounded up to even

A row is float32 ``step`` and ``lowest``, and a uint16 ``q`` for every token of the vocabulary:
its log-probability is ``lowest + step * q``.  ``lowest`` is that of the least likely token, or
of one that is e^16 times less likely than the likeliest; whatever is below is written as it.

Source: ``log_softmax`` and ``kl_divergence`` in ``tools/perplexity/perplexity.cpp`` of llama.cpp.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.checkpoints.replacing import replacing
from pyrllama.errors import ComparisonError, CorruptFileError, UnknownFormatError
from pyrllama.models.llama import MAX_SIZES
from pyrllama.perplexity import SLICE_NUMBERS
from pyrllama.text_chunks import (
    MIN_CONTEXT,
    TextChunks,
    check_context,
    check_same_tokens,
    cut_text,
    limited,
    starting_bos,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from pyrllama.perplexity import Tap
    from pyrllama.tokenizer import Tokenizer

MAGIC = b"_logits_"
_HEAD = struct.Struct("<8sIii")
_RANGE = 16.0
"""Nats below the likeliest token at which probabilities end."""
_STEPS = 65535
_HIGHEST = 1e-3
"""A log-probability cannot be over zero, rounding apart."""


class LogitsFile:
    """A file of log-probabilities, mapped into memory.

    Raises ``ModelNotFoundError`` where there is no file, ``UnknownFormatError`` for another kind
    of file, and ``CorruptFileError`` for one that contradicts itself.
    """

    floor = -_RANGE
    """Log-probabilities that are not over it count as none, as in llama.cpp."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            self.context, self.vocab_size, self.n_chunks = self._sizes()
            self.tokens = self._tokens()
        except BaseException:
            self.close()
            raise

    def text(
        self, tokenizer: Tokenizer, text: str | None, longest: int,
        *, context: int | None, chunks: int | None,
    ) -> TextChunks:  # fmt: skip
        """Return the chunks that it was saved of; where ``text`` is given, it must be theirs."""
        if context not in {None, self.context}:
            raise ComparisonError(
                f"{self.path}: was saved at a context of {self.context} tokens and cannot be "
                f"compared at one of {context}; leave the context out"
            )
        check_context(self.context, longest)
        count = limited(self.n_chunks, chunks)
        if text is not None:
            given = cut_text(tokenizer, text, longest, context=self.context)
            count = min(count, given.count)
            end = count * self.context
            problem = f"{self.path}: was saved of another text"
            check_same_tokens(given.tokens[:end], self.tokens[:end], problem)
        return TextChunks(self.tokens, self.context, count, starting_bos(tokenizer))

    def batches(self, text: TextChunks, number: int) -> Iterator[NDArray[np.float32]]:
        """Yield the log-probabilities of a chunk's scored tokens, ``(rows, vocab)`` at a time."""
        row_bytes = _row_bytes(self.vocab_size)
        start = _HEAD.size + 4 * len(self.tokens) + number * text.scored * row_bytes
        at_once = max(1, SLICE_NUMBERS // self.vocab_size)
        for row in range(0, text.scored, at_once):
            n_rows = min(at_once, text.scored - row)
            stored = self._file.view(start + row * row_bytes, n_rows * row_bytes)
            yield self._unpacked(stored.reshape(n_rows, row_bytes), number)
        self._file.release(start, text.scored * row_bytes)

    def log_probabilities(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the same numbers: the rows are log-probabilities."""
        return rows.astype(np.float64)

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def _sizes(self) -> tuple[int, int, int]:
        """Return context, vocabulary and chunks, which must explain the size of the file."""
        if bytes(self._file.view(0, min(len(MAGIC), self._file.size))) != MAGIC:
            raise UnknownFormatError(
                self.path,
                "this is no file of logits; `--save-logits FILE` or llama.cpp's `llama-perplexity "
                "--kl-divergence-base FILE` writes one",
            )
        _, context, vocab_size, n_chunks = _HEAD.unpack(self._file.view(0, _HEAD.size).data)
        for name, value, least, most in (
            ("context", context, MIN_CONTEXT, MAX_SIZES["context_length"]),
            ("vocabulary", vocab_size, 1, MAX_SIZES["vocab_size"]),
            ("number of chunks", n_chunks, 1, 1 << 31),
        ):
            if not least <= value <= most:
                raise CorruptFileError(
                    self.path, f"its {name} is {value}, but it must be at least {least}"
                )
        scored = TextChunks(np.empty(0, np.int64), context, n_chunks, None).scored
        wanted = _HEAD.size + n_chunks * (4 * context + scored * _row_bytes(vocab_size))
        if self._file.size != wanted:
            raise CorruptFileError(
                self.path,
                f"has {self._file.size} bytes, but {n_chunks} chunks of {context} tokens over a "
                f"vocabulary of {vocab_size} take {wanted}; it was not written to its end",
            )
        return context, vocab_size, n_chunks

    def _tokens(self) -> NDArray[np.int64]:
        stored = self._file.view(_HEAD.size, 4 * self.n_chunks * self.context)
        tokens = stored.view("<i4").astype(np.int64)
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise CorruptFileError(
                self.path, f"has tokens outside its vocabulary of {self.vocab_size}; save it again"
            )
        return tokens

    def _unpacked(self, stored: NDArray[np.uint8], number: int) -> NDArray[np.float32]:
        """Return stored rows as log-probabilities, ``(rows, vocab)``."""
        step, lowest = np.hsplit(stored[:, :8].copy().view("<f4"), 2)
        with np.errstate(over="ignore", invalid="ignore"):
            highest = lowest + step * _STEPS
        if not (np.isfinite(lowest) & (step >= 0) & (highest <= _HIGHEST)).all():
            raise CorruptFileError(
                self.path, f"chunk {number + 1} has numbers that are no log-probabilities"
            )
        steps = stored[:, 8:].copy().view("<u2")[:, : self.vocab_size]
        return np.asarray(steps.astype(np.float32) * step + lowest, np.float32)


def is_logits_file(path: Path) -> bool:
    """Tell whether a path is a file that begins as one of logits does."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@contextmanager
def saved_logits(path: Path, text: TextChunks, vocab_size: int) -> Iterator[Tap]:
    """Write a file of a text's log-probabilities; what is yielded takes the logits in order.

    It grows under a temporary name and takes its own when it is whole.  Raises
    ``CheckpointError`` when it cannot be written.
    """
    tokens = text.tokens[: text.count * text.context].astype("<i4")
    with replacing(path) as file:
        file.write(_HEAD.pack(MAGIC, text.context, vocab_size, text.count))
        file.write(tokens.data)
        yield lambda logits: _write_rows(file, logits)


def _write_rows(file: BinaryIO, logits: NDArray[np.float32]) -> None:
    at_once = max(1, SLICE_NUMBERS // logits.shape[1])
    file.writelines(
        _packed(logits[start : start + at_once]).data for start in range(0, len(logits), at_once)
    )


def _packed(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return rows of logits as they are stored, ``(rows, bytes)``."""
    with np.errstate(invalid="ignore", over="ignore"):  # of logits that the caller will refuse
        highest = logits.max(axis=1, keepdims=True).astype(np.float64)
        lowest = np.maximum(logits.min(axis=1, keepdims=True), highest - _RANGE)
        total = np.exp(logits - highest).sum(axis=1, keepdims=True)
        step = ((highest - lowest) / _STEPS).astype(np.float32)
        steps = np.rint((np.maximum(logits, lowest) - lowest) / np.where(step > 0, step, 1))
        words = np.minimum(steps, _STEPS).astype("<u2").view(np.uint8)
    heads = np.hstack([step, lowest - highest - np.log(total)]).astype("<f4")
    stored = np.zeros((len(logits), _row_bytes(logits.shape[1])), np.uint8)
    stored[:, :8] = heads.view(np.uint8)
    stored[:, 8 : 8 + words.shape[1]] = words
    return stored


def _row_bytes(vocab_size: int) -> int:
    return 2 * (4 + (vocab_size + 1) // 2 * 2)
