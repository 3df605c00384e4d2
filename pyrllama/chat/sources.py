"""Where chat templates are found: in a GGUF file, beside a tokenizer, by name, or in a file.

Sources: llama.cpp's keys ``tokenizer.chat_template`` and ``tokenizer.chat_template.NAME``;
the files that transformers reads, of which ``chat_template.jinja`` goes before the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrllama.chat.forms import FORMS, PLAIN
from pyrllama.chat.template import MAX_SOURCE, TemplateSource
from pyrllama.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KEY = "tokenizer.chat_template"
"""GGUF's key of the template; behind a dot stands the name of another one."""
DEFAULT = "default"
TOOL_USE = "tool_use"
"""The name that authors give to the template for conversations with tools."""
MAX_CONFIG = 64 << 20
"""Bytes of a ``tokenizer_config.json``; those with many added tokens have some 10 MB."""
_UTF8_BYTES = 4


class Templates:
    """The chat templates of one model, read when the first one is asked for."""

    def __init__(
        self, model: Path, metadata: Mapping[str, Any], tokenizer: Path | None = None
    ) -> None:
        """Remember what a model says; ``tokenizer`` is its file where it is one of its own."""
        self.model = model
        self._keys = {
            key: value for key, value in metadata.items() if key == KEY or key.startswith(KEY + ".")
        }
        self._folder = None if tokenizer is None else tokenizer.parent
        self._found: dict[str, TemplateSource] | None = None

    @property
    def found(self) -> Mapping[str, TemplateSource]:
        """The model's own templates by name; the one without is ``default``.

        Raises ``ChatTemplateError`` for a file that cannot be read and for what is no text.
        """
        if self._found is None:
            found = dict(_in_metadata(self._keys, self.model))
            if not found and self._folder is not None:
                found = dict(_in_folder(self._folder))
            self._found = found
        return self._found


def choose_template(
    templates: Templates | None,
    wanted: str | Path | TemplateSource | None = None,
    *,
    tools: bool = False,
) -> TemplateSource:
    """Return the template to use: the one that is wanted, by name or file, or the model's.

    ``tools`` prefers the model's template for tools.  Raises ``ChatTemplateError`` if there is
    none, with the forms that there are to choose from.
    """
    if isinstance(wanted, TemplateSource):
        return wanted
    found = {} if templates is None else templates.found
    if wanted is not None:
        return _named(wanted, found)
    for name in (TOOL_USE, DEFAULT) if tools else (DEFAULT,):
        if name in found:
            return found[name]
    others = f" (only {', '.join(found)})" if found else ""
    raise ChatTemplateError(
        "the model" if templates is None else str(templates.model),
        f"is not there{others}, as with a base model, which was not trained to chat; give the "
        f"one of its author with --chat-template FILE, or choose a plain form with "
        f"--chat-template {'|'.join(PLAIN)}",
    )


def _named(wanted: str | Path, found: Mapping[str, TemplateSource]) -> TemplateSource:
    named = {**FORMS, **found}
    if isinstance(wanted, str) and wanted in named:
        return named[wanted]
    path = Path(wanted)
    if path.is_file():
        return TemplateSource(_read_text(path), str(path))
    raise ChatTemplateError(
        str(wanted), f"is not there: it is no file, and the known names are {', '.join(named)}"
    )


def _in_metadata(keys: Mapping[str, Any], model: Path) -> Iterator[tuple[str, TemplateSource]]:
    for key, value in keys.items():
        origin = f"{model}: {key}"
        if not isinstance(value, str):
            raise ChatTemplateError(origin, f"is a {type(value).__name__} and no text")
        yield key[len(KEY) + 1 :] or DEFAULT, TemplateSource(value, origin)


def _in_folder(folder: Path) -> Iterator[tuple[str, TemplateSource]]:
    """Yield the templates beside a tokenizer; a later one of the same name goes before."""
    config = folder / "tokenizer_config.json"
    if config.is_file():
        yield from _in_config(_read_json(config).get("chat_template"), str(config))
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        yield path.stem, TemplateSource(_read_text(path), str(path))
    single = folder / "chat_template.jinja"
    if single.is_file():
        yield DEFAULT, TemplateSource(_read_text(single), str(single))


def _in_config(value: Any, origin: str) -> Iterator[tuple[str, TemplateSource]]:
    """Yield what stands under ``chat_template``: a text, or a list of names and texts."""
    if isinstance(value, str):
        yield DEFAULT, TemplateSource(value, f"{origin}: chat_template")
        return
    for entry in value if isinstance(value, list) else [] if value is None else [value]:
        name, text = (
            (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(name, str) or not isinstance(text, str):
            raise ChatTemplateError(
                f"{origin}: chat_template", "is neither a text nor a list of names and templates"
            )
        yield name, TemplateSource(text, f"{origin}: chat_template {name!r}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path, MAX_CONFIG))
    except (ValueError, RecursionError) as error:
        raise ChatTemplateError(str(path), f"cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ChatTemplateError(str(path), "cannot be read: it is not a JSON object")
    return content


def _read_text(path: Path) -> str:
    try:
        return _read(path, _UTF8_BYTES * MAX_SOURCE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ChatTemplateError(str(path), f"is not UTF-8 at byte offset {error.start}") from None


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ChatTemplateError(str(path), f"cannot be read: {error.strerror}") from None
    if len(content) > most:
        raise ChatTemplateError(str(path), f"cannot be read: the file has more than {most} bytes")
    return content
