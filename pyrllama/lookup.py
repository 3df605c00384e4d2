"""Drafts from the text itself: what followed the last time that its last tokens stood there.

An edit, a summary with quotations or a program repeats runs of its prompt.  Source of the idea:
Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_TOKENS = 2
"""Tokens by which an earlier place is found."""
LENGTHS = (2, 3, 4, 6, 10, 16)
"""A match of at least so many tokens is a class stronger; class 0 is a guess without a match."""


class PromptLookup:
    """Proposes what followed the last match of a text's end; a ``Drafter``.

    Where the text's end is new, it may be one token in the place of another, as edits have it:
    then what follows beside the last proposal is worth a guess, until one fails at once.
    """

    def __init__(self) -> None:
        self._text: Sequence[int] = ()
        self._indexed = 0
        self._places: dict[tuple[int, ...], int] = {}
        """The end of the last occurrence of each pair of tokens, the text's own end apart."""
        self._found = 0
        self._distance: int | None = None
        """Tokens from the text to what it was found to repeat."""
        self._guessed_at: int | None = None
        """The text's length when a guess was made."""
        self._guesses = False

    def look(self, text: Sequence[int]) -> int | None:
        """Return the class of the match by its length; None if there is nothing to propose."""
        self._index(text)
        place = self._places.get(tuple(text[-KEY_TOKENS:]))
        self._guesses = place is None
        if place is not None:
            self._found = place
            return sum(_match_length(text, place) >= length for length in LENGTHS)
        if self._guessed_at == len(text) - 1:
            self._distance = None
        if self._distance is None:
            return None
        self._found = len(text) - self._distance
        return 0

    def propose(self, text: Sequence[int], most: int) -> tuple[int, ...]:
        """Return what followed at the place that ``look`` found.

        Where that runs into the end of the text, the text repeats itself, and so does the draft.
        """
        self._distance = len(text) - self._found
        self._guessed_at = len(text) if self._guesses else None
        return tuple(text[self._found + n % self._distance] for n in range(most))

    def close(self) -> None:
        """Forget the text."""
        self._begin(())

    def _begin(self, text: Sequence[int]) -> None:
        self._text, self._indexed, self._places = text, KEY_TOKENS, {}
        self._distance = self._guessed_at = None

    def _index(self, text: Sequence[int]) -> None:
        """Note where every pair but the last ends; a text grows, another one begins anew."""
        if text is not self._text or len(text) < self._indexed:
            self._begin(text)
        for end in range(self._indexed, len(text)):
            self._places[tuple(text[end - KEY_TOKENS : end])] = end
        self._indexed = max(len(text), KEY_TOKENS)


def _match_length(text: Sequence[int], place: int) -> int:
    """Return how many tokens before a place are those at the end of the text."""
    most = min(place, LENGTHS[-1])
    return next((n for n in range(most) if text[place - 1 - n] != text[-1 - n]), most)
