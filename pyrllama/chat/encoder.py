"""Renderings to token ids, with what was said before kept in the very tokens that were said.

A model may write a text in other tokens than the tokenizer makes of it.  If a conversation
went on with the tokenizer's, the tokens of its earlier turns would change behind the model's
back, and their keys and values would have to be computed again.  So the encoder remembers the
ids of the exchanges that it has seen and continues them where a rendering does.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pyrllama.chat.rendering import Renderer, Rendering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyrllama.tokenizer import Tokenizer

REMEMBERED = 32
"""Exchanges that are remembered: each conversation that is going on needs its last one."""

Parts = tuple[int | str, ...]


class ChatEncoder:
    """Makes the prompts of conversations for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spellings = {token: spelling for spelling, token in tokenizer.control.items()}
        self._seen: OrderedDict[Parts, tuple[int, ...]] = OrderedDict()
        self.renderer = Renderer(tokenizer.control)

    def spelling(self, token: int | None) -> str:
        """Return how a control token is spelled; nothing for another token, and for none."""
        return "" if token is None else self._spellings.get(token, "")

    def piece(self, token: int) -> str:
        """Return a token for people: its spelling, or its text with stray bytes escaped."""
        if token in self._spellings:
            return self._spellings[token]
        if token >= self._tokenizer.vocab_size:
            return ""
        return self._tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")

    def encode(self, rendering: Rendering) -> list[int]:
        """Return the ids of a prompt, with BOS once before it if the model expects it."""
        ids, parts = self._continued(rendering.parts)
        text = ""
        for part in parts:
            if isinstance(part, int):
                text += self._spellings[part]
            elif self.renderer.spells(part):
                ids += self._tokenizer.encode(text, special=True) if text else []
                ids += self._tokenizer.encode(part)
                text = ""
            else:
                text += part
        ids += self._tokenizer.encode(text, special=True) if text else []
        return self._with_one_bos(ids)

    def remember(self, rendering: Rendering, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Remember an exchange: a prompt and the ids of the answer, an end token apart."""
        stream = self._tokenizer.stream(prompt)
        text = "".join(map(stream.push, answer)) + stream.flush()
        *before, last = rendering.parts or ("",)
        said: Parts = (*before, last + text) if isinstance(last, str) else (*before, last, text)
        self._seen[said] = (*prompt, *answer)
        self._seen.move_to_end(said)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _continued(self, parts: Parts) -> tuple[list[int], Parts]:
        """Return the ids of the longest exchange that a rendering continues, and what follows."""
        for said in sorted(self._seen, key=len, reverse=True):
            n, ids = len(said), self._seen[said]
            if len(parts) < n or parts[: n - 1] != said[:-1]:
                continue
            if parts[n - 1] == said[-1]:
                if len(parts) > n:  # what follows a text is a control token, and one follows all
                    return list(ids), parts[n:]
                continue
            last, there = said[-1], parts[n - 1]
            if isinstance(last, str) and isinstance(there, str) and there.startswith(last):
                tail = self._continued_text(ids, there[len(last) :])
                if tail is not None:
                    return [*ids, *tail], parts[n:]
        return [], parts

    def _continued_text(self, ids: Sequence[int], text: str) -> list[int] | None:
        """Return the ids of a text behind others, None where they cannot be had.

        A tokenizer that puts a space before each text needs one less; what decodes to the
        very text is right.
        """
        for candidate in (text, text.removeprefix(" ")):
            tail = self._tokenizer.encode(candidate)
            stream = self._tokenizer.stream(ids)
            if "".join(map(stream.push, tail)) + stream.flush() == text:
                return tail
        return None

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_id
        if bos is None:
            return ids
        while ids[:2] == [bos, bos]:
            del ids[0]
        return ids if ids[:1] == [bos] or not self._tokenizer.add_bos else [bos, *ids]
