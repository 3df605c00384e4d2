"""What the user types: a line, or several, with history and completion of commands.

A message goes on over lines that end in a backslash, between ``\"\"\"`` and ``\"\"\"``, after
Alt-Enter, and where several lines are pasted at once.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import platformdirs

from pyrllama.cli.terminal import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = ">>> "
CONTINUATION = "... "
QUOTES = '"""'
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


class Reader(Protocol):
    """Where messages and commands come from."""

    def read(self, draft: str = "") -> str | None:
        """Return the next one, None at the end; ``draft`` is text to begin with.

        Raises ``KeyboardInterrupt`` for Ctrl-C.
        """


class LineReader:
    """One message a line, of a file or pipe."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines: Iterator[str] = iter(lines)

    def read(self, draft: str = "") -> str | None:  # noqa: ARG002 - nobody is there to edit it
        """Return the next line."""
        line = next(self._lines, None)
        return None if line is None else line.rstrip("\n")


class TerminalReader:
    """A person at a terminal."""

    def __init__(
        self, history: Path | None, commands: Iterable[str], toolbar: Callable[[], str]
    ) -> None:
        self._session = _session(history, list(commands), toolbar)

    def read(self, draft: str = "") -> str | None:
        """Let a message be typed."""
        try:
            return joined(self._session.prompt(default=draft))
        except EOFError:
            return None


def is_finished(text: str) -> bool:
    """Tell whether Enter ends a message, or begins another line of it."""
    return text.count(QUOTES) % 2 == 0 and not text.endswith("\\")


def joined(text: str) -> str:
    """Return a message without the marks that let it go on over lines."""
    bare = text.strip()
    if bare.startswith(QUOTES) and bare.endswith(QUOTES) and len(bare) >= 2 * len(QUOTES):
        return bare[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text.replace("\\\n", "\n")


def default_history() -> Path:
    """Return where what was typed is kept."""
    return platformdirs.user_state_path("rllama") / "chat_history"


def _session(
    path: Path | None, commands: list[str], toolbar: Callable[[], str]
) -> PromptSession[str]:
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - takes 150 ms
    from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415
    from prompt_toolkit.formatted_text import to_formatted_text  # noqa: PLC0415

    return PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=CONTINUATION,
        key_bindings=_key_bindings(),
        history=_history(path),
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
        bottom_toolbar=lambda: to_formatted_text(toolbar()),
    )


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings  # noqa: PLC0415

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_finished(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history(path: Path | None) -> History:
    """Return the history in a file that only the user can read, or in memory if none can be."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415

    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        path.touch(PRIVATE_FILE)
        with path.open("ab"):
            pass
    except OSError as error:
        note(f"{path}: what you type is not kept: {error.strerror}")
        return InMemoryHistory()

    class KeptHistory(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a full disk must not end the conversation
                super().store_string(string)

    return KeptHistory(str(path))


def is_interactive() -> bool:
    """Tell whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()
