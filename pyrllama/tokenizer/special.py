"""Special tokens: how their spelling is found in a text, and which of them end a text."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

STOP_SPELLINGS = frozenset(
    {
        "</s>",
        "<eos>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<EOT>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)
"""Special tokens that end a text or a turn, in the spelling of the models that use them."""


class SpecialTokens:
    """Tokens that stand for themselves wherever their spelling occurs in a text."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = {spelling: token for spelling, token in ids.items() if spelling}

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the text's parts in order: ids of special tokens, and what lies between them."""
        end = 0
        for match in self._pattern.finditer(text) if self._ids else ():
            if match.start() > end:
                yield text[end : match.start()]
            yield self._ids[match.group()]
            end = match.end()
        if end < len(text):
            yield text[end:]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))


def stop_ids(special: Mapping[str, int], known: Iterable[int | None]) -> frozenset[int]:
    """Return the ids that end a text: the known ones and those that are spelled so."""
    spelled = {token for spelling, token in special.items() if spelling in STOP_SPELLINGS}
    return frozenset(spelled.union(token for token in known if token is not None))
