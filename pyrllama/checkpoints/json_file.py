"""Reads the JSON objects that describe checkpoints, with a named error for each bad value."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pyrllama.errors import CorruptFileError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_JSON_BYTES = 64 << 20
MAX_SIZE = 1 << 48
"""More than any machine can address, and still exact as a float."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds.

    Raises ``ModelNotFoundError`` for a file that cannot be read and ``CorruptFileError`` for
    one that is not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CorruptFileError(path, f"is larger than {MAX_JSON_BYTES} bytes: not a config")
        content = path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(path, f"cannot be read: {error.strerror}") from error
    return parse_json(content, path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """Return the object that bytes of ``path`` hold; ``CorruptFileError`` if they hold none."""
    try:
        value = json.loads(content, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"holds no valid JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CorruptFileError(path, "holds JSON that is not an object; fetch it again")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is there twice")
    return values


class Fields:
    """Typed access to the fields of an object; null counts as a field that is not there."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number from 1 to ``MAX_SIZE``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            raise self.wrong(key, f"a whole number from 1 to {MAX_SIZE}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number over 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        if not 0 < value < math.inf or value > 1e30:
            raise self.wrong(key, "a finite number over 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return true or false, which is also what a missing field means."""
        value = self._value(key, default=False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def fields(self, key: str) -> Fields:
        """Return an object within; an empty one where there is none."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(self.path, value)

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(key) is not None

    def wrong(self, key: str, wanted: str) -> CorruptFileError:
        """Return the error for a value that is not what it must be."""
        shown = repr(self.values.get(key))[:80]
        return CorruptFileError(self.path, f"{key} is {shown}, but it must be {wanted}")

    def _value(self, key: str, default: object) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise CorruptFileError(self.path, f"has no {key}; fetch the file again")
        return default
