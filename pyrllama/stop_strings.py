"""Strings that end a text: found across tokens, and cut off exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable


class StopStrings:
    """Lets a text through piece by piece until one of some strings comes.

    Text that may be the beginning of one is held back until it is clear.  Of strings that
    one piece completes, that which begins first counts, and of these the longest.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        """Take the strings; raises ``SettingError`` for one that is empty or no text."""
        self._strings = tuple(strings)
        for string in self._strings:
            if not isinstance(string, str) or not string:
                raise SettingError("stop", string, "a text that is not empty")
        self._held = ""
        self.found: str | None = None
        """The string that came."""

    def push(self, piece: str) -> str:
        """Return the text that is let through; nothing more after a string has come."""
        if self.found is not None:
            return ""
        text = self._held + piece
        places = [(text.find(string), -len(string), string) for string in self._strings]
        come = [place for place in places if place[0] >= 0]
        if come:
            start, _, self.found = min(come)
            self._held = ""
            return text[:start]
        held = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Return what was held back, as no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Return how many characters at a text's end are the beginning of a string, not all of it."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
