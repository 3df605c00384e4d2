"""A text as the chunks of tokens that a model is measured on, cut as llama.cpp cuts them.

The text is tokenised once and cut into chunks as long as the context; what is left over at
its end is not used.  Every chunk goes through the model by itself, with BOS in the place of
its first token if the model is trained so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.errors import ComparisonError, PromptError, SettingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.tokenizer import Tokenizer

DEFAULT_CONTEXT = 512
"""Tokens of a chunk unless told otherwise, as in llama.cpp."""
MIN_CONTEXT = 8
"""Fewer would leave too few scored tokens in a chunk for a standard error."""


@dataclass(frozen=True, slots=True, eq=False)
class TextChunks:
    """The chunks of a text."""

    tokens: NDArray[np.int64]
    """The ids of the whole text, those that no chunk uses included."""
    context: int
    """Tokens of a chunk."""
    count: int
    """Chunks to use."""
    bos: int | None
    """What replaces the first token of each chunk."""

    @property
    def first(self) -> int:
        """The position in a chunk of the first token whose successor is scored.

        Each has at least half a context before it then.
        """
        return self.context // 2

    @property
    def scored(self) -> int:
        """Tokens that are scored in a chunk: its last ones."""
        return self.context - self.first - 1

    def inputs(self, number: int) -> list[int]:
        """Return what the model reads of a chunk."""
        start = number * self.context
        inputs: list[int] = self.tokens[start : start + self.context].tolist()
        if self.bos is not None:
            inputs[0] = self.bos
        return inputs

    def targets(self, number: int) -> NDArray[np.int64]:
        """Return the tokens of a chunk that are scored, ``(scored,)``."""
        end = (number + 1) * self.context
        return self.tokens[end - self.scored : end]


def cut_text(
    tokenizer: Tokenizer,
    text: str,
    longest: int,
    *,
    context: int | None = None,
    chunks: int | None = None,
) -> TextChunks:
    """Tokenise a text and cut it.

    ``context`` is by default 512, or ``longest`` if that is less; ``chunks`` uses only so many.
    Raises ``SettingError`` for a context or a count that is out of range, and ``PromptError``
    for a text of less than two contexts.
    """
    if context is None:
        context = min(DEFAULT_CONTEXT, longest)
    check_context(context, longest)
    tokens = tokenizer.encode(text, bos=tokenizer.add_bos)
    if len(tokens) < 2 * context:
        raise PromptError(
            f"the text has {len(tokens)} tokens, but a measurement at a context of {context} needs "
            f"{2 * context}; give a longer text or a context of at most {len(tokens) // 2}"
        )
    count = limited(len(tokens) // context, chunks)
    return TextChunks(np.array(tokens, np.int64), context, count, starting_bos(tokenizer))


def check_context(context: int, longest: int) -> None:
    """Raise ``SettingError`` for chunks that are too short to measure, or too long to read."""
    if not MIN_CONTEXT <= context <= longest:
        raise SettingError("context", context, f"from {MIN_CONTEXT} to {longest}")


def limited(count: int, chunks: int | None) -> int:
    """Return how many of ``count`` chunks are used where no more than ``chunks`` are wanted."""
    if chunks is None:
        return count
    if chunks < 1:
        raise SettingError("chunks", chunks, "a whole number from 1 upwards")
    return min(count, chunks)


def check_same_tokens(ours: NDArray[np.int64], theirs: NDArray[np.int64], problem: str) -> None:
    """Raise ``ComparisonError``, with the first difference, for tokens that are not equal."""
    if np.array_equal(ours, theirs):
        return
    shorter = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:shorter] != theirs[:shorter])
    position = int(differ[0]) if differ.size else shorter
    raise ComparisonError(
        f"{problem} from token {position} on; give the same text, and models of one vocabulary"
    )


def starting_bos(tokenizer: Tokenizer) -> int | None:
    """Return the token that every chunk starts with, None if the model is trained without."""
    return tokenizer.bos_id if tokenizer.add_bos else None
