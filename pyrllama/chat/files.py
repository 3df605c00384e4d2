"""Saved conversations: a JSON file with the messages."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrllama.chat.messages import checked_messages
from pyrllama.errors import ConversationFileError, MessageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyrllama.chat.messages import Message

FORMAT = "rllama conversation"
VERSION = 1
MAX_BYTES = 64 << 20


def save_messages(path: str | os.PathLike[str], messages: Sequence[Mapping[str, Any]]) -> None:
    """Write a conversation, whole or not at all.

    Raises ``ConversationFileError`` where that cannot be done, and rather than write over a
    file that is no conversation.
    """
    path = Path(path)
    if path.exists():
        load_messages(path)
    content = {"format": FORMAT, "version": VERSION, "messages": list(messages)}
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, "utf-8", "backslashreplace")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ConversationFileError(path, f"cannot be written: {error.strerror}") from None


def load_messages(path: str | os.PathLike[str]) -> list[Message]:
    """Read a conversation; raises ``ConversationFileError`` for a file that is none."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConversationFileError(path, f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConversationFileError(path, f"has more than {MAX_BYTES >> 20} MiB")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConversationFileError(path, f"is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConversationFileError(path, "is no saved conversation; /save writes those")
    if content.get("version") != VERSION:
        raise ConversationFileError(
            path, f"has version {content.get('version')!r:.40}, but only {VERSION} is known"
        )
    messages = content.get("messages")
    try:
        return checked_messages(messages) if messages else []
    except MessageError as error:
        raise ConversationFileError(path, str(error)) from None
