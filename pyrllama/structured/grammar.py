"""What a text must match, as users write it: a JSON schema, a regular expression, a grammar."""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyrllama.errors import SettingError, StructureError
from pyrllama.structured.library import llguidance

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CHARACTERS = 1 << 20
"""Far over any grammar in use."""
LONGEST_MESSAGE = 1000
"""Characters of the library's messages, which may quote all of a grammar."""
JSON_WHITESPACE = {"whitespace_flexible": True, "whitespace_pattern": r" |\n[ ]{0,32}"}
"""What may stand between the parts of JSON: a model that likes spaces could go on for ever."""
FIRST_BEYOND_ASCII = 0x80
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL)


class StructureKind(enum.StrEnum):
    """How a structure is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    """llama.cpp's GBNF, or Lark's syntax as llguidance has it; the text says which."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What a text must match; ``grammar`` is in the library's own form."""

    kind: StructureKind
    grammar: str


def read_structure(
    json_schema: str | Mapping[str, Any] | bool | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    *,
    origin: str | None = None,
) -> Structure | None:
    """Return what one of the arguments states, None where all are None.

    ``origin`` is what messages call its source, such as a file.  Raises ``SettingError`` for two
    of them, ``StructureError`` for one that is broken or asks for what cannot be done, and
    ``MissingPackageError`` without llguidance.
    """
    given = {
        StructureKind.JSON_SCHEMA: json_schema,
        StructureKind.REGEX: regex,
        StructureKind.GRAMMAR: grammar,
    }
    stated = {kind: source for kind, source in given.items() if source is not None}
    if not stated:
        return None
    if len(stated) > 1:
        raise SettingError("the structure", " and ".join(stated), "given only once")
    ((kind, source),) = stated.items()
    name = origin or f"the {kind.replace('_', ' ')}"
    text = source if isinstance(source, str) else _as_json(source, name)
    if len(text) > MAX_CHARACTERS:
        raise StructureError(f"{name}: has more than {MAX_CHARACTERS} characters")
    return Structure(kind, _checked(_translate(kind, text, name), name))


def _as_json(schema: object, name: str) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise StructureError(f"{name}: is not JSON: {error}") from None


def _translate(kind: StructureKind, text: str, name: str) -> str:
    """Return the library's form of what a user wrote."""
    matcher = llguidance().LLMatcher
    if kind == StructureKind.REGEX:
        return str(matcher.grammar_from_regex(text))
    if kind == StructureKind.JSON_SCHEMA:
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StructureError(f"{name}: is not JSON: {error}") from None
        if not isinstance(schema, dict | bool):
            raise StructureError(f"{name}: must be an object, or true or false")
        options = JSON_WHITESPACE if isinstance(schema, dict) else None
        try:
            return str(matcher.grammar_from_json_schema(json.dumps(schema), overrides=options))
        except ValueError as error:
            raise StructureError(f"{name}: {error}") from None
    return str(matcher.grammar_from_lark(_lark(text, name)))


def _lark(text: str, name: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax  # noqa: PLC0415 - optional

    if is_lark_syntax(text):
        return text
    try:
        return str(gbnf_to_lark(_ESCAPE.sub(_unescaped, text)))
    except Exception as error:
        raise StructureError(f"{name}: the grammar cannot be read: {error}") from None


def _unescaped(match: re.Match[str]) -> str:
    """Return the character of a numbered escape; that of ASCII stays one, in the shortest form.

    The converter drops zeros at the front of longer forms, which makes them unreadable.
    """
    digits = match[1] or match[2] or match[3]
    if digits is None:
        return match[0]
    code = int(digits, 16)
    return f"\\x{code:02x}" if code < FIRST_BEYOND_ASCII else chr(code)


def _checked(grammar: str, name: str) -> str:
    """Return a grammar that the library takes; it tells what it does not like, and where."""
    failed, messages = llguidance().LLMatcher.validate_grammar_with_warnings(grammar)
    if failed:
        raise StructureError(f"{name}: {messages[0].strip()[:LONGEST_MESSAGE]}")
    return grammar
