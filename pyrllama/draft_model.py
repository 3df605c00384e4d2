"""Drafts from a smaller model: the tokens that it finds likeliest, one after the other.

Source of the idea: Leviathan et al., "Fast Inference from Transformers via Speculative
Decoding", arXiv 2211.17192; the tokens are checked as ``speculation.py`` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.core import BLOCK_TOKENS, Batch, Chunk, blocks_for
from pyrllama.errors import TokenizerError
from pyrllama.prefix import agreeing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.backend import Model
    from pyrllama.tokenizer import Tokenizer

UNREAD = 16
"""More new tokens than these are read before the time of a draft begins to count."""


def check_same_vocabulary(tokenizer: Tokenizer, drafting: Tokenizer, path: Path) -> None:
    """Raise ``TokenizerError`` unless every id stands for the same bytes in both."""
    mend = "a draft model must be of the same family as the model"
    if tokenizer.vocab_size != drafting.vocab_size:
        raise TokenizerError(
            f"{path}: the draft model has {drafting.vocab_size} tokens and the model "
            f"{tokenizer.vocab_size}; {mend}"
        )
    for token in range(tokenizer.vocab_size):
        theirs, ours = drafting.token_bytes(token), tokenizer.token_bytes(token)
        if theirs != ours:
            raise TokenizerError(
                f"{path}: token {token} is {theirs!r} in the draft model and {ours!r} in the "
                f"model; {mend}"
            )


class DraftModel:
    """A model that reads along, in a KV cache of its own; a ``speculation.Drafter``.

    Ids from ``vocab_size`` on, which only its padding has, are never proposed.
    """

    def __init__(self, model: Model, vocab_size: int) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._blocks = tuple(range(model.n_blocks))
        self._read: list[int] = []
        """The tokens whose keys and values its cache holds."""

    def look(self, text: Sequence[int]) -> int | None:
        """Return the one class of its drafts; None where the text is longer than its context."""
        if len(text) >= self._model.n_blocks * BLOCK_TOKENS:
            return None
        self._drop_others(text)
        if len(text) - len(self._read) > UNREAD:
            self._feed(text[len(self._read) : -1])
        return 0

    def propose(self, text: Sequence[int], most: int) -> tuple[int, ...]:
        """Return the likeliest tokens behind a text."""
        most = min(most, self._model.n_blocks * BLOCK_TOKENS - len(text) + 1)
        self._drop_others(text)
        draft: list[int] = []
        unread: Sequence[int] = text[len(self._read) :]
        while len(draft) < most:
            token = int(self._feed(unread).argmax())
            if token >= self._vocab_size:
                break
            draft.append(token)
            unread = (token,)
        return tuple(draft)

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def _drop_others(self, text: Sequence[int]) -> None:
        """Forget what was read beyond the beginning of a text, its last token in any case."""
        del self._read[min(agreeing(self._read, list(text)), len(text) - 1) :]

    def _feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read tokens behind those read, and return the logits after the last."""
        at_once = self._model.max_batch_tokens
        for first in range(0, len(tokens), at_once):
            part = tuple(tokens[first : first + at_once])
            start = len(self._read)
            blocks = self._blocks[: blocks_for(start + len(part))]
            rows = self._model.forward(Batch((Chunk(part, start, blocks),)))
            self._read += part
        last: NDArray[np.float32] = rows[-1]
        return last
