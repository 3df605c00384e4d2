"""The kinds of work that are compared, and how they are named on a command line."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """What is measured; the value is its name on the command line and in the results."""

    PREFILL = "prefill"
    """Tokens a second of a prompt of so many tokens, from an empty context."""
    DECODE = "decode"
    """Tokens a second from an empty context."""
    DEPTH = "depth"
    """Tokens a second of decoding behind a context of so many tokens."""
    SEQUENCES = "sequences"
    """Tokens a second in total of so many sequences decoded together."""
    START = "start"
    """Seconds of the command for one token, from its start to its end."""
    MEMORY = "memory"
    """Peak resident bytes of that command."""


COUNTED = {Kind.PREFILL, Kind.DEPTH, Kind.SEQUENCES}
"""Kinds that need a number: ``prefill:512``."""
LESS_IS_BETTER = {Kind.START, Kind.MEMORY}


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of work with its number, 0 where the kind has none."""

    kind: Kind
    n: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.n}" if self.kind in COUNTED else str(self.kind)

    @property
    def title(self) -> str:
        """How tables call it."""
        return {
            Kind.PREFILL: f"prefill, {self.n} tokens",
            Kind.DECODE: "decode",
            Kind.DEPTH: f"decode behind {self.n:,} tokens",
            Kind.SEQUENCES: f"decode, {self.n} sequences",
            Kind.START: "start to first token, s",
            Kind.MEMORY: "peak memory, GB",
        }[self.kind]

    @property
    def less_is_better(self) -> bool:
        """Whether the smaller figure wins."""
        return self.kind in LESS_IS_BETTER


def parse_work(text: str) -> Work:
    """Return the work that ``prefill:512`` or ``decode`` names; raises ``ValueError``."""
    name, _, number = text.partition(":")
    try:
        kind = Kind(name)
        work = Work(kind, int(number) if kind in COUNTED else 0)
    except ValueError as error:
        raise ValueError(f"{text!r} is none of {names()}") from error
    if str(work) != text or (kind in COUNTED and work.n < 1):
        raise ValueError(f"{text!r} is none of {names()}")
    return work


def names() -> str:
    """Return all forms of a work, N for a whole number from 1."""
    return ", ".join(f"{kind}:N" if kind in COUNTED else kind for kind in Kind)
