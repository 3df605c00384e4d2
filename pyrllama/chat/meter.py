"""What a template may use: a bound on its steps, its time, and the text that it makes.

A chat template is a program by whoever made the model.  Its loops and calls count steps, and
every value that it makes is weighed: a character is 1, a member of a list or mapping 64.  So
a template can neither run on nor fill the memory, and its nested values stay small enough
that writing them out, comparing or sorting them is quick too.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from time import monotonic
from typing import TypeVar

from jinja2.exceptions import SecurityError

MAX_STEPS = 1_000_000
"""Blocks, calls, comparisons and elements; long conversations take some ten thousand."""
MAX_SECONDS = 10.0
"""Looked at with every step; no single step takes long, for what it works on is weighed."""
MAX_WEIGHT = 16 << 20
"""Of all values that one rendering makes, whatever its messages weigh."""
WEIGHT_PER_INPUT = 64
"""What is added to it for each unit of weight of the messages and tools."""
MAX_INPUT_WEIGHT = 1 << 30
"""Of messages and tools, beyond any context."""
MEMBER_WEIGHT = 64
DEEPEST = 64
"""Lists and mappings inside of each other."""

_Value = TypeVar("_Value")


class LimitError(SecurityError):
    """A template uses more than it may."""


class Meter:
    """Counts what one rendering uses and raises ``LimitError`` when that is too much."""

    def __init__(self, inputs: object = None) -> None:
        """Allow for ``inputs``, which must be weighable themselves."""
        self._weight_left = MAX_WEIGHT + WEIGHT_PER_INPUT * weigh(inputs, MAX_INPUT_WEIGHT)
        self._steps_left = MAX_STEPS
        self._deadline = monotonic() + MAX_SECONDS

    def step(self, value: _Value | None = None) -> _Value | None:
        """Count one step and return ``value``."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise LimitError(f"it takes more than {MAX_STEPS} steps")
        if monotonic() > self._deadline:
            raise LimitError(f"it takes longer than {MAX_SECONDS:.0f} s")
        return value

    def reserve(self, weight: int) -> None:
        """Refuse a value of this weight, before it is made, if it is too heavy."""
        if weight > self._weight_left:
            raise _too_much()

    def charge(self, value: _Value) -> _Value:
        """Count a value that was just made and return it; an iterator counts as it is used."""
        if isinstance(value, Generator):
            return self._charged(value)  # type: ignore[return-value]
        weight = len(value) if isinstance(value, str) else weigh(value, self._weight_left)
        self.reserve(weight)
        self._weight_left -= weight
        return value

    def joined(self, parts: Iterable[object]) -> str:
        """Return the text of several values one after the other."""
        self.step()
        return self.charge("".join([str(self.charge(part)) for part in parts]))

    def _charged(self, values: Iterator[_Value]) -> Iterator[_Value]:
        for value in values:
            self.step()
            yield self.charge(value)


def weigh(value: object, most: int) -> int:
    """Return the weight of a value with all that is in it; raises ``LimitError`` over ``most``.

    What is reached twice counts twice, as it does when the value is written out.
    """
    total = 0
    waiting: list[tuple[object, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        total += len(item) if isinstance(item, str) else MEMBER_WEIGHT
        members = _members(item)
        if depth > DEEPEST:
            raise LimitError(f"a value of it is nested more than {DEEPEST} deep")
        if total + MEMBER_WEIGHT * len(members) > most:
            raise _too_much()
        waiting += [(member, depth + 1) for member in members]
    return total


def _members(item: object) -> list[object]:
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    return list(item) if isinstance(item, list | tuple | set | frozenset) else []


def _too_much() -> LimitError:
    return LimitError(
        f"it makes more than {MAX_WEIGHT >> 20} Mi characters, of which a member of a list or "
        f"mapping counts {MEMBER_WEIGHT}"
    )
