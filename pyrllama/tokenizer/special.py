"""Special tokens: how their spelling is found in a text, and which of them end a text."""

from __future__ import annotations

import re
from collections import defaultdict
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
    """Tokens that stand for themselves wherever their spelling occurs in a text.

    Of spellings that start at the same place the longest counts.  A regular expression of all of
    them would try one after the other: a vocabulary of nothing but special tokens, which a file
    may have, would take a millisecond for every character of a text.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = {spelling: token for spelling, token in ids.items() if spelling}

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the text's parts in order: ids of special tokens, and what lies between them."""
        end = at = 0
        while self._ids and (found := self._first.search(text, at)):
            at = found.start()
            parts = (text[at : at + length] for length in self._lengths[text[at]])
            spelling = next((part for part in parts if part in self._ids), None)
            if spelling is None:
                at += 1
                continue
            if at > end:
                yield text[end:at]
            yield self._ids[spelling]
            at = end = at + len(spelling)
        if end < len(text):
            yield text[end:]

    @cached_property
    def _first(self) -> re.Pattern[str]:
        """Finds the characters with which spellings start."""
        return re.compile(f"[{re.escape(''.join(self._lengths))}]")

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """The lengths of the spellings by their first character, the longest first."""
        lengths: dict[str, set[int]] = defaultdict(set)
        for spelling in self._ids:
            lengths[spelling[0]].add(len(spelling))
        return {first: sorted(found, reverse=True) for first, found in lengths.items()}


def stop_ids(special: Mapping[str, int], known: Iterable[int | None]) -> frozenset[int]:
    """Return the ids that end a text: the known ones and those that are spelled so."""
    spelled = {token for spelling, token in special.items() if spelling in STOP_SPELLINGS}
    return frozenset(spelled.union(token for token in known if token is not None))
