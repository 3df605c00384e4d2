"""Running the programs that are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

KIB = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit in which the system counts a process's resident memory (getrusage(2))."""
LAST_LINES = 3


class ProgramError(Exception):
    """A program that was to be measured failed or printed something else than expected."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program left behind."""

    out: str
    seconds: float
    """From its start to its end."""
    peak_bytes: int
    """The most that it had resident."""


def run(command: Sequence[str]) -> Finished:
    """Run a program to its end; raises ``ProgramError`` with its last words if it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = perf_counter()
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except OSError as error:
            raise ProgramError(f"{command[0]} cannot be run: {error.strerror}") from error
        # Popen.wait would not tell the resources that this one child used.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        if process.returncode:
            last = " / ".join(err.read().splitlines()[-LAST_LINES:])
            raise ProgramError(f"{' '.join(command)}: status {process.returncode}: {last}")
        return Finished(out.read(), seconds, usage.ru_maxrss * KIB)


def run_json_lines(command: Sequence[str]) -> list[dict[str, Any]]:
    """Run a program and return the JSON objects that stand on lines of their own in its output."""
    out = run(command).out
    try:
        found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    except ValueError as error:
        raise ProgramError(f"{' '.join(command)}: its output is not JSON ({error})") from error
    if not found:
        raise ProgramError(f"{' '.join(command)}: there is no JSON in its output")
    return found
