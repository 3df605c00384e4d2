"""Messages as templates expect them: checked, and made of plain values alone.

They have the form that OpenAI's chat API has given them: a ``role``, a ``content``, and for
tools ``tool_calls`` and ``tool_call_id``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyrllama.errors import MessageError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
OPENING_ROLES = ("system", "developer")
"""Roles whose messages at the start of a conversation stay when turns are dropped."""
DEEPEST = 32
"""Lists and mappings inside of each other, in a message or tool."""

Message = dict[str, Any]


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return messages of plain values; raises ``MessageError`` that names the one at fault."""
    if not _is_list(messages) or not messages:
        raise MessageError(
            "a conversation must be a list of one message or more, such as "
            '[{"role": "user", "content": "Hello"}]'
        )
    return [_checked(message, f"message {i}") for i, message in enumerate(messages)]


def checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return tools of plain values, None for none; raises ``MessageError``."""
    if not tools:
        return None
    if not _is_list(tools):
        raise MessageError("tools must be a list of JSON objects that describe functions")
    plain = [_plain(tool, f"tool {i}") for i, tool in enumerate(tools)]
    for i, tool in enumerate(plain):
        if not isinstance(tool, dict):
            raise MessageError(f"tool {i} must be a JSON object that describes a function")
    return plain


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _checked(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise MessageError(f"{where} is {message!r:.60}, but must have a role and a content")
    role = message.get("role")
    if role not in ROLES:
        raise MessageError(f"{where} has the role {role!r:.60}; the roles are {', '.join(ROLES)}")
    plain: Message = _plain(message, where)
    content = plain.get("content")
    if isinstance(content, list):
        plain["content"] = "\n".join(_part(part, where) for part in content)
    elif content is None and plain.get("tool_calls"):
        plain["content"] = ""  # as templates take it that were not written for None
    elif not isinstance(content, str):
        raise MessageError(f"{where} has no content that is a text, but {content!r:.60}")
    calls = plain.get("tool_calls") or []
    if not isinstance(calls, list):
        raise MessageError(f"{where} has tool_calls that are no list")
    if calls:
        plain["tool_calls"] = [_tool_call(call, where) for call in calls]
    return plain


def _part(part: Any, where: str) -> str:
    """Return the text of a part of a content."""
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise MessageError(f"{where} has a part that is no text, which this program cannot read")


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """Return a call whose arguments are an object: the API has their text, templates write it."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MessageError(f"{where} has a tool call without a function's name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise MessageError(f"{where} has a tool call whose arguments are no JSON") from None
    return {**call, "function": {**function, "arguments": arguments}}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Copy a value out of JSON's types; a subclass could hide methods from the sandbox."""
    if depth > DEEPEST:
        raise MessageError(f"{where} is nested more than {DEEPEST} deep")
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case Mapping():
            return {str(key): _plain(item, where, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, where, depth + 1) for item in value]
    raise MessageError(f"{where} holds a {type(value).__name__}, which JSON has not")
