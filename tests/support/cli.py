"""What the tests of the command line say of a run of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


class Run(Protocol):
    """Runs the command in this process."""

    def __call__(self, *arguments: str | Path) -> Outcome: ...
