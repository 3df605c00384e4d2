"""What every tokenizer does: text to token ids, ids to bytes, and a stream of ids to text."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING

from pyrllama.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character."""


class Tokenizer(ABC):
    """A vocabulary with its rules; ids run from 0 to ``vocab_size - 1``, special tokens included.

    A lone surrogate in a text, which no tokenizer can express, is read as U+FFFD.  Decoding is
    lossy in one way only: bytes that are not UTF-8 become U+FFFD.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    stop_ids: frozenset[int]
    """Every id that ends a text: the end of the sequence, of a turn, of a message."""
    add_bos: bool
    """Whether the model expects its prompts to start with BOS."""
    kind: str
    """The format, for people: ``"SentencePiece BPE"``, ``"GGUF llama-bpe"``."""
    control: Mapping[str, int] = MappingProxyType({})
    """The control tokens by spelling: they stand for themselves where ``special`` is asked for."""
    drops_first_space = False
    """Whether the space that encoding puts before a text is taken off when decoding."""

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Return the ids of ``text``; ``bos`` puts BOS before them if the tokenizer has one.

        With ``special`` the spelling of a special token (``<|eot_id|>``) becomes that token;
        without, it is text like any other, so that a user's words never act as control tokens.
        """
        prefix = [self.bos_id] if bos and self.bos_id is not None else []
        return prefix + self._encode(_replace_surrogates(text), special)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; control tokens give nothing, broken UTF-8 gives U+FFFD.

        Raises ``TokenizerError`` for an id outside the vocabulary.
        """
        detokenizer = self.stream()
        return "".join(map(detokenizer.push, ids)) + detokenizer.flush()

    def token_bytes(self, token: int) -> bytes:
        """Return what a token adds to the text: UTF-8, possibly a part of a character.

        Raises ``TokenizerError`` for an id outside the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise TokenizerError(
                f"there is no token {token}: the ids of the vocabulary end at "
                f"{self.vocab_size - 1}; give the tokenizer that belongs to the model"
            )
        return self._token_bytes(token)

    def stream(self, context: Sequence[int] = (), *, keep_first_space: bool = False) -> Detokenizer:
        """Start to decode token by token what follows ``context`` (the prompt's ids).

        ``keep_first_space`` keeps a space that decoding a whole text takes off.
        """
        return Detokenizer(self, context, keep_first_space=keep_first_space)

    @abstractmethod
    def _encode(self, text: str, special: bool) -> list[int]:
        """Return the ids of a text that is valid Unicode, without BOS."""

    @abstractmethod
    def _token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token that the vocabulary has."""


class Detokenizer:
    """Turns ids into text as they come and holds back an incomplete UTF-8 character.

    What all calls of ``push`` and the last ``flush`` return together is ``decode`` of the same
    ids, continued from the context.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        *,
        keep_first_space: bool = False,
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        ending = b""
        for token in reversed(context):
            ending = tokenizer.token_bytes(token) + ending
            if len(ending) >= _LONGEST_CHARACTER:
                break
        drops = tokenizer.drops_first_space and not keep_first_space
        self._drop_space = drops and not ending
        self._utf8.decode(ending)  # What follows may complete a character of the context.

    def push(self, token: int) -> str:
        """Return the text that is complete with this token, possibly none."""
        added = self._token_bytes(token)
        if self._drop_space and added:
            self._drop_space = False
            added = added.removeprefix(b" ")
        return self._utf8.decode(added)

    def flush(self) -> str:
        """Return what was held back: U+FFFD for a character that stays incomplete."""
        return self._utf8.decode(b"", final=True)


def _replace_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
