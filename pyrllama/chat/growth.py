"""What filters, methods and operators of a template may make out of little, looked at before.

Everything that a template makes is weighed afterwards; these are the few operations whose
result can be so much longer than what goes in that it must not be made at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pyrllama.chat.meter import (
    MAX_INPUT_WEIGHT,
    MAX_WEIGHT,
    MEMBER_WEIGHT,
    LimitError,
    Meter,
    weigh,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_NUMBER_BITS = 4096
MAX_WIDTH = 100
"""Of an indentation, in characters, and of a rounding, in digits."""
MAX_PARTS = 10_000
"""Parts or members of a part into which ``batch`` and ``slice`` cut, filled up."""

_WIDE_FORMAT = re.compile(r"\d{4}|\{[^}]*\{")
_WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(\d{4}|\*)")


def check_operation(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Refuse what an operator would make if that is too much."""
    if operator == "%" and isinstance(left, str):
        _check_percent(meter, left, right)
    elif operator == "+":
        _check_sum(meter, left, right)
    elif operator == "*":
        _check_product(meter, left, right)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))


def _check_sum(meter: Meter, left: Any, right: Any) -> None:
    """Refuse to join texts or lists that are too long together."""
    if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        unit = 1 if isinstance(left, str) else MEMBER_WEIGHT
        meter.reserve(unit * (len(left) + len(right)))


def _check_product(meter: Meter, left: Any, right: Any) -> None:
    """Refuse to repeat something too often, or a number that grows without end."""
    if isinstance(left, int) and not isinstance(right, int):
        left, right = right, left
    if isinstance(left, str | list | tuple) and isinstance(right, int):
        unit = 1 if isinstance(left, str) else MEMBER_WEIGHT
        meter.reserve(unit * len(left) * max(right, 0))
    elif isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def join(meter: Meter, separator: str, items: Iterable[str]) -> str:
    """Do what ``str.join`` does."""
    return separator.join(_listed(meter, items, separator))


def replace(meter: Meter, text: str, old: str, new: str, count: int = -1) -> str:
    """Do what ``str.replace`` does."""
    _check_replace(meter, text, old, new)
    return text.replace(old, new, count)


def formatted(
    meter: Meter, text: str, method: Callable[..., str], *args: Any, **kwargs: Any
) -> str:
    """Do what ``str.format`` does; ``method`` is the sandbox's own."""
    _check_format(text, _WIDE_FORMAT)
    meter.reserve(text.count("{") * weigh([args, kwargs], MAX_WEIGHT))
    return method(*args, **kwargs)


def check_json(meter: Meter, value: Any, indent: Any, separators: Any) -> None:
    """Refuse JSON whose members would be set far apart."""
    between = 0
    if indent is not None:
        _check_count("indent", indent, MAX_WIDTH)
        between += abs(indent)
    for separator in separators or ():
        _check_count("separator", len(separator), MAX_WIDTH)
        between += len(separator)
    meter.reserve(weigh(value, MAX_INPUT_WEIGHT) * (1 + between))


def _check_percent(meter: Meter, text: str, values: Any) -> None:
    """Refuse what the operator ``%`` makes of wide columns or of values that come often."""
    _check_format(text, _WIDE_PERCENT)
    meter.reserve(text.count("%") * weigh(values, MAX_WEIGHT))


def _listed(meter: Meter, value: Any, d: str = "", attribute: Any = None) -> list[Any]:  # noqa: ARG001
    items = list(value)
    meter.reserve(len(str(d)) * len(items))
    return items


def _check_replace(meter: Meter, value: Any, old: Any, new: Any, count: Any = None) -> Any:  # noqa: ARG001
    meter.reserve(str(value).count(str(old)) * len(str(new)))
    return value


def _check_indent(meter: Meter, value: Any, width: Any = 4, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
    characters = len(width) if isinstance(width, str) else width
    _check_count("indent", characters, MAX_WIDTH)
    meter.reserve(len(str(value).splitlines()) * characters)
    return value


def _check_parts(meter: Meter, value: Any, count: Any = 1, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
    _check_count("number of parts", kwargs.get("linecount", kwargs.get("slices", count)), MAX_PARTS)
    return value


def _check_round(meter: Meter, value: Any, precision: Any = 0, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
    _check_count("precision", precision, MAX_WIDTH)
    return value


def _check_columns(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    _check_percent(meter, str(value), [args, kwargs])
    return value


FILTER_BOUNDS: dict[str, Callable[..., Any]] = {
    "join": _listed,
    "replace": _check_replace,
    "indent": _check_indent,
    "batch": _check_parts,
    "slice": _check_parts,
    "round": _check_round,
    "format": _check_columns,
}
"""What looks at the arguments of a filter that could make much, and returns its value."""


def _check_count(name: str, count: Any, most: int) -> None:
    if not isinstance(count, int) or abs(count) > most:
        raise LimitError(f"its {name} is {count!r:.40}, over {most}")


def _check_bits(bits: int) -> None:
    if bits > MAX_NUMBER_BITS:
        raise LimitError(f"a number in it has more than {MAX_NUMBER_BITS} bits")


def _check_format(text: str, wide: re.Pattern[str]) -> None:
    if wide.search(text):
        raise LimitError(f"its format {text!r:.60} has a width over 999 or a computed one")
