"""What a tokenizer's tokens are in bytes, and which tokens give the bytes that are wanted."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyrllama.tokenizer.base import Tokenizer

_FENCE = "\n"
"""What is put before a text so that no tokenizer puts a space there."""


class TokenBytes:
    """The bytes of all tokens, looked up once, when they are first needed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def tokens(self) -> list[bytes]:
        """What every token adds to a text, by id; nothing for a control token."""
        return [self._tokenizer.token_bytes(token) for token in range(self._tokenizer.vocab_size)]

    def exact_ids(self, text: bytes) -> list[int]:
        """Return ids whose bytes together are exactly ``text``, the tokenizer's own if it can.

        A SentencePiece model puts a space before a text, which then is not what it encodes.
        """
        ids = self._tokenizer.encode(_FENCE + text.decode("utf-8", "replace"))
        behind, left = len(ids), len(text)
        while behind > 0 and left > 0:
            behind -= 1
            left -= len(self.tokens[ids[behind]])
        chosen = ids[behind:]
        if b"".join(self.tokens[token] for token in chosen) == text:
            return chosen
        return self._longest_first(text)

    def _longest_first(self, text: bytes) -> list[int]:
        """Cut a text from its beginning into the longest tokens that there are."""
        ids, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._ids), None)
            if end is None:
                return []
            ids.append(self._ids[text[start:end]])
            start = end
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {spelled: token for token, spelled in enumerate(self.tokens) if spelled}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)

    def sequences(self, text: str) -> list[tuple[int, ...]]:
        """Return the sequences of tokens in which a text may come, as DRY looks for it.

        Where it lies inside a token, that token alone; where a token ends with its beginning,
        that token and the rest in the longest tokens.
        """
        wanted = text.encode()
        found: list[tuple[int, ...]] = [
            (token,) for token, spelled in enumerate(self.tokens) if wanted in spelled
        ]
        for cut in range(1, len(wanted)):
            head, rest = wanted[:cut], tuple(self._longest_first(wanted[cut:]))
            found += [
                (token, *rest)
                for token, spelled in enumerate(self.tokens)
                if spelled.endswith(head) and wanted not in spelled
            ]
        return found
