"""Stop texts: where an answer ends although the model has chosen no end token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class StopTexts:
    """Passes a text on piece by piece up to the first of some texts, which is cut away.

    What may be the beginning of one is held back until it is known.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found: str | None = None
        """The text that ended it."""

    def push(self, piece: str) -> str:
        """Return what can be shown with this piece; nothing once a stop text was found."""
        if self.found is not None:
            return ""
        text = self._held + piece
        starts = {stop: at for stop in self._stops if (at := text.find(stop)) >= 0}
        if starts:
            self.found = min(starts, key=lambda stop: (starts[stop], -len(stop)))
            self._held = ""
            return text[: starts[self.found]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
