"""A model's tokens as bytes, which is how a grammar sees them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyrllama.structured.library import llguidance
from pyrllama.tokenizer.token_bytes import TokenBytes

if TYPE_CHECKING:
    from collections.abc import Sequence

_END = b"<end>"


class Vocabulary(TokenBytes):
    """The tokens of a tokenizer as a grammar sees them.

    Behind them stands one token more, for the library: the end of a text, whatever the ids
    that the model ends with.  A control token has no bytes and is never part of a match.
    """

    @property
    def end_id(self) -> int:
        """The id that stands for the end of a text."""
        return len(self.tokens)

    @cached_property
    def library_tokenizer(self) -> Any:
        """The vocabulary in the library's form: half a second's work for 128,000 tokens."""
        library = llguidance()
        return library.LLTokenizer(library.TokenizerWrapper(_Bridge(self)))


class _Bridge:
    """What the library asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.tokens: Sequence[bytes] = [*vocabulary.tokens, _END]
        self.eos_token_id = vocabulary.end_id
        self.bos_token_id = None
        silent = [token for token, spelled in enumerate(vocabulary.tokens) if not spelled]
        self.special_token_ids = [*silent, vocabulary.end_id]

    def __call__(self, text: bytes) -> list[int]:
        return self._vocabulary.exact_ids(text)
