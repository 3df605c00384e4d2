"""A terminal for tests: runs a program behind a pseudo-terminal and knows what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Self

import pyte

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATIENCE = 60.0
"""Seconds after which something that does not appear will not."""
COLUMNS, LINES = 100, 200
ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A"
AT_THE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes the terminal the one whose Ctrl-C interrupts, and becomes the program."""


class _Screen(pyte.Screen):
    """A screen that answers a program which asks where the cursor is."""

    def __init__(self, answers: list[bytes]) -> None:
        super().__init__(COLUMNS, LINES)
        self._answers = answers

    def write_process_input(self, data: str) -> None:
        self._answers.append(data.encode())


class Terminal:
    """A program and its screen, which is tall enough that nothing scrolls away."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._answers: list[bytes] = []
        self._screen = _Screen(self._answers)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", AT_THE_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """What the screen shows: a line end before each line, no empty ones behind the last."""
        return "\n" + "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until the screen shows a text, or shows it so many times."""
        deadline = monotonic() + PATIENCE
        while self.text.count(text) < count:
            assert self._read(deadline - monotonic()), f"no {text!r} in:\n{self.text}"

    def end(self) -> int:
        """Wait until the program ends and return its exit status."""
        deadline = monotonic() + PATIENCE
        while self._read(deadline - monotonic()):
            pass
        return self._process.wait(PATIENCE)

    def _read(self, seconds: float) -> bool:
        """Take up what the program writes next; False when it has ended or takes too long."""
        if not select.select([self._master], [], [], max(seconds, 0))[0]:
            return False
        data = b""
        with suppress(OSError):  # what Linux says where a terminal has no program any more
            data = os.read(self._master, 1 << 16)
        self._stream.feed(data)
        for answer in self._answers:
            os.write(self._master, answer)
        self._answers.clear()
        return bool(data)
