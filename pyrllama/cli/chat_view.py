"""How an answer is shown as it comes: as Markdown on a terminal, or as it is."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Protocol, Self

from pyrllama.cli.terminal import printable, write

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.markdown import Markdown

REFRESH_SECONDS = 0.08
"""Between two drawings of the block that is being written."""
_FENCES = ("```", "~~~")


class View(Protocol):
    """Shows one answer; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_error: object) -> None: ...

    def show(self, text: str) -> None:
        """Show the next piece."""


class PlainView:
    """Writes the text as it is, with a line end behind it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        write(self._console, "\n")

    def show(self, text: str) -> None:
        """Write the next piece; the white space before the answer is left out."""
        piece = text if self._begun else text.lstrip()
        if piece:
            self._begun = True
            write(self._console, piece)


class MarkdownView:
    """Draws what is being written anew, and what is finished for good.

    Only the last block - a paragraph, a list, a piece of code - can still change, so only that
    is drawn again and again, and a long answer never has to fit the screen.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rest = ""
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live  # noqa: PLC0415 - takes 50 ms

        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._live is not None  # noqa: S101 - entered
        self._live.stop()
        self._print(self._rest)

    def show(self, text: str) -> None:
        """Add the next piece, and draw it unless that was done just now."""
        assert self._live is not None  # noqa: S101 - entered
        self._rest += printable(text)
        end = finished_end(self._rest)
        if end:
            self._print(self._rest[:end])
            self._console.print()
            self._rest = self._rest[end:]
        now = monotonic()
        if end or now - self._drawn > REFRESH_SECONDS:
            self._drawn = now
            self._live.update(_markdown(self._rest), refresh=True)

    def _print(self, text: str) -> None:
        if text.strip():
            self._console.print(_markdown(text))


def _markdown(text: str) -> Markdown:
    from rich.markdown import Markdown  # noqa: PLC0415 - takes 100 ms

    # Two spaces keep a line end, which Markdown would join: models write verses and lists so.
    return Markdown(text.replace("\n", "  \n"))


def finished_end(text: str) -> int:
    """Return where the blocks end that nothing which follows can change: at an empty line."""
    end = at = 0
    fenced = False
    for line in text.splitlines(keepends=True):
        at += len(line)
        if line.lstrip().startswith(_FENCES):
            fenced = not fenced
        elif not fenced and not line.strip() and line.endswith("\n") and text[:at].strip():
            end = at
    return end
