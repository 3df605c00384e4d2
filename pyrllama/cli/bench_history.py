"""Histories of ``rllama bench``: a file that grows by one line of JSON a run.

A line is the report as ``--json`` prints it, and before it the ``time`` (UTC, ISO 8601) and
the ``commit`` that is checked out in the source tree; of an installed package that is its
version.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyrllama
from pyrllama.errors import HistoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE_BYTES = 1 << 20
MAX_NUMBER = 1e15
YEARS = range(2000, 2200)
COMMIT = re.compile(r"([0-9a-f]{12})(?:[0-9a-f]{28}|[0-9a-f]{52})")
"""A commit's id, of which the first twelve digits are kept: SHA-1 or SHA-256."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a line of a history says of one run; rates are medians in tokens a second."""

    time: dt.datetime
    commit: str
    label: str
    """Machine, model, type, threads and work: only runs with the same can be compared."""
    decode: float
    prefill: float
    share: float
    """Of the read bandwidth, 1 for all of it."""


def prepare(path: Path) -> None:
    """Make a history if there is none, so that a measurement is not lost for want of a file.

    Raises ``HistoryError`` when it cannot be written, or when the file is something else.
    """
    if path.exists() and not path.is_file():
        raise HistoryError(path, "this is no file; name another for the history")
    try:
        with path.open("ab+") as file:
            file.seek(0)
            first = file.readline(MAX_LINE_BYTES)
    except OSError as error:
        raise _unwritable(path, error) from error
    if first.strip():
        _parsed(path, 1, first)


def append(path: Path, report: dict[str, Any]) -> None:
    """Append a report to a history, whole and in one piece.

    The line goes out in a single write to the end of the file, so that the lines of programs
    that append at the same time stand one behind the other.  Raises ``HistoryError``.
    """
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    line = json.dumps({"time": now, "commit": source_commit(), **report}).encode() + b"\n"
    try:
        with path.open("ab+", buffering=0) as file:
            if not _ends_a_line(path):
                line = b"\n" + line  # somebody's editor took the last line's end
            if file.write(line) != len(line):
                raise HistoryError(path, "the disk is full; the last line was cut short")
    except OSError as error:
        raise _unwritable(path, error) from error


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _unwritable(path: Path, error: OSError) -> HistoryError:
    return HistoryError(path, f"the history cannot be written ({error.strerror}); name another")


def source_commit() -> str:
    """Return the commit of the source tree that runs, or the version of an installed package."""
    try:
        commit = _head(Path(pyrllama.__file__).parents[1] / ".git")
    except (OSError, UnicodeDecodeError):
        commit = ""
    found = COMMIT.fullmatch(commit)
    return found[1] if found else pyrllama.__version__


def _head(git: Path) -> str:
    """Return the id of the commit that is checked out; raises ``OSError`` if there is none.

    The files are read and git is not asked: the package starts no programs.  Source: git's
    ``gitrepository-layout`` manual.
    """
    if git.is_file():  # a linked worktree has a file that names its folder
        git = git.parent / git.read_text("utf-8").removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text("utf-8").strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    common = git / "commondir"
    shared = git / common.read_text("utf-8").strip() if common.is_file() else git
    if (shared / name).is_file():
        return (shared / name).read_text("utf-8").strip()
    packed = (line.split() for line in (shared / "packed-refs").read_text("utf-8").splitlines())
    return next((words[0] for words in packed if words[1:] == [name]), "")


def read(path: Path) -> list[Run]:
    """Return the runs of a history in the order of the file; blank lines are skipped.

    Raises ``HistoryError`` for a file that cannot be read or has no runs, and with the number
    of the line for one that is damaged.
    """
    try:
        runs = [_parsed(path, number, line) for number, line in _lines(path)]
    except OSError as error:
        raise HistoryError(
            path,
            f"the history cannot be read ({error.strerror}); 'rllama bench --history' writes one",
        ) from error
    if not runs:
        raise HistoryError(path, "there are no runs in it; 'rllama bench --history' adds one")
    return runs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if line.strip():
                yield number, line


def _parsed(path: Path, number: int, line: bytes) -> Run:
    """Take a line apart; raises ``HistoryError`` if it is not that of a run."""
    try:
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")  # noqa: TRY301
        return _run(json.loads(line.decode()))
    except RecursionError:
        problem = "it is nested too deeply"
    except KeyError as error:
        problem = f"it has no field {error}"
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        problem = str(error)
    raise HistoryError(
        path, f"this is not a line of 'rllama bench --history' ({problem}); take it out", number
    )


def _run(record: dict[str, Any]) -> Run:
    time = dt.datetime.fromisoformat(record["time"]).astimezone(dt.UTC)
    if time.year not in YEARS:
        raise ValueError(f"the year {time.year} is not from {YEARS.start} to {YEARS.stop - 1}")
    return Run(
        time=time,
        commit=_text(record, "commit"),
        label=_label(record),
        decode=_number(record["decode_tokens_per_second"], "median"),
        prefill=_number(record["prefill_tokens_per_second"], "median"),
        share=_number(record, "share_of_bandwidth"),
    )


def _label(record: dict[str, Any]) -> str:
    """Say what distinguishes the runs of one line of a plot."""
    work = record["workload"]
    prompt, depth, sequences, threads = (
        f"{_number(*place):.0f}"
        for place in (
            (work, "prompt_tokens"),
            (work, "depth"),
            (work, "sequences"),
            (record, "threads"),
        )
    )
    parts = [
        f"{Path(_text(record, 'source')).name} {_text(record, 'weights')}",
        f"{threads} thread{'' if threads == '1' else 's'} of {_text(record['machine'], 'cpu')}",
        f"prompt {prompt}",
        f"context {depth}",
    ]
    if sequences != "1":
        parts.append(f"{sequences} sequences")
    if record["kv_type"] != "f16":
        parts.append(f"KV cache {_text(record, 'kv_type')}")
    return ", ".join(parts)


def _text(record: dict[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a text")
    return value.encode("utf-8", "replace").decode()  # JSON can hold half of a character


def _number(record: dict[str, Any], name: str) -> float:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is not a number")
    if not (math.isfinite(value) and 0 <= value <= MAX_NUMBER):
        raise ValueError(f"{name} is {value}")
    return float(value)
