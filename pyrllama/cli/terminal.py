"""What the commands share of the terminal: colours, errors, and the bar while weights load."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.loading import Progress as ProgressCallback

PROMPT_STYLE = "cyan"
PIPE_WIDTH = 160
"""Columns of a table that goes to a file or another program."""

_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\n\t"
}
"""A text must not be able to move the cursor or rename the window."""


def stdout() -> Console:
    """Return the console of what the user asked for."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def stderr() -> Console:
    """Return the console of what is said about it."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """Return a text with its control codes replaced, so that it is safe on a terminal."""
    return text.translate(_CONTROLS)


def write(console: Console, text: str, style: str | None = None) -> None:
    """Write a piece of a text at once: as it is, or on a terminal without its control codes."""
    if console.is_terminal:
        console.out(printable(text), end="", style=style, highlight=False)
    else:
        console.file.write(text)  # rich would drop carriage returns and the like
    console.file.flush()


def print_error(message: str) -> None:
    """Print one ``error:`` line to standard error."""
    line = " ".join(printable(message).split("\n"))
    stderr().print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)


def note(message: str) -> None:
    """Print one dim line of what is going on to standard error."""
    stderr().print(Text(printable(message)), style="dim", soft_wrap=True)


@contextmanager
def loading_bar(*, quiet: bool) -> Iterator[ProgressCallback | None]:
    """Show a bar of bytes and rate on standard error, where that is a terminal."""
    console = stderr()
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import (  # noqa: PLC0415 - the slowest part of rich to import
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("loading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("loading", total=None)

    def show(done: int, total: int) -> None:
        """Show the bar only from the first byte to the last: what is said around it stays whole."""
        bar.start()
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()

    try:
        yield show
    finally:
        bar.stop()
