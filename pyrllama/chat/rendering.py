"""Messages to token ids: the template's control tokens are tokens, those in messages are text.

Both reach the tokenizer in one text, so they must be told apart.  Where a message could spell
a control token, or a part of one, it is rendered with a *mark* inside: one character out of
Unicode's private use that occurs nowhere else and is drawn anew each time.  A spelling with a
mark in it is no token; once the tokens are found the marks are taken out again.

Marks must not change what a template makes of a message.  So there are two ways to set them,
and the first whose text without marks equals that of a plain rendering is taken: at each
character with which a control token begins or ends, which no way to cut or join texts can get
around, or within whole spellings only, which leaves alone what templates look for in texts
(``</think>``).  If neither does - a template treats messages with a control token in them
differently - the second is taken: then the template does not see that token either.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pyrllama.errors import MessageError
from pyrllama.tokenizer.special import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pyrllama.chat.messages import Message
    from pyrllama.chat.template import ChatTemplate

Marking = Callable[[str], str]

_PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True, slots=True)
class Rendering:
    """A prompt as text, cut into control tokens (ids) and what lies between them."""

    parts: tuple[int | str, ...]
    text: str


class Renderer:
    """Renders conversations for one vocabulary's control tokens."""

    def __init__(self, control: Mapping[str, int]) -> None:
        spellings = [spelling for spelling in control if spelling]
        self._special = SpecialTokens(control)
        self._first = {s[0] for s in spellings}
        self._last = {s[-1] for s in spellings}
        self._edge = _any_of(self._first | self._last)
        self._whole = _any_of(spellings)

    def render(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> Rendering:
        """Return the prompt for checked messages; raises ``ChatTemplateError``."""
        now = datetime.now().astimezone()

        def text_of(marking: Marking | None) -> str:
            return template.render(
                messages if marking is None else _marked(messages, marking),
                tools if tools is None or marking is None else _marked(tools, marking),
                add_generation_prompt=add_generation_prompt,
                now=now,
                arguments=arguments,
            )

        plain = text_of(None)
        texts = [*_texts(messages), *_texts(tools)]
        if not any(self._edge.search(text) for text in texts):
            return self._cut(plain, "")
        mark = _unused_mark([plain, template.source.text, *texts])
        rendering = self._cut(text_of(lambda text: self._mark_edges(text, mark)), mark)
        if rendering.text != plain:
            rendering = self._cut(text_of(lambda text: self._mark_whole(text, mark)), mark)
        return rendering

    def spells(self, text: str) -> bool:
        """Tell whether a text holds the spelling of a control token."""
        return self._whole.search(text) is not None

    def _mark_edges(self, text: str, mark: str) -> str:
        def marked(found: re.Match[str]) -> str:
            edge = found[0]
            return mark * (edge in self._last) + edge + mark * (edge in self._first)

        return self._edge.sub(marked, text)

    def _mark_whole(self, text: str, mark: str) -> str:
        return self._whole.sub(lambda found: found[0][0] + mark + found[0][1:], text)

    def _cut(self, text: str, mark: str) -> Rendering:
        """Find the control tokens in a rendering and take the marks out of the rest."""
        parts: list[int | str] = []
        for part in self._special.split(text):
            piece = without(part, mark) if isinstance(part, str) and mark else part
            if isinstance(piece, str) and parts and isinstance(parts[-1], str):
                parts[-1] += piece
            elif piece != "":
                parts.append(piece)
        return Rendering(tuple(parts), without(text, mark) if mark else text)


def without(text: str, mark: str) -> str:
    """Return a text without marks, also those that JSON has spelled in ASCII."""
    return text.replace(mark, "").replace(_in_ascii(mark), "")


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of some texts; without any, one that nothing matches."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _texts(value: Any) -> Iterable[str]:
    """Yield the texts in a value, names of members too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _marked(value: Any, marking: Marking) -> Any:
    """Copy a value with its texts marked, names of members too."""
    if isinstance(value, str):
        return marking(value)
    if isinstance(value, dict):
        return {marking(name): _marked(item, marking) for name, item in value.items()}
    if isinstance(value, list):
        return [_marked(item, marking) for item in value]
    return value


def _unused_mark(texts: Iterable[str]) -> str:
    """Draw a character that occurs nowhere, so that nobody can have written it on purpose."""
    written = "".join(texts).lower()
    first = secrets.randbelow(len(_PRIVATE_USE))
    for code in (*_PRIVATE_USE[first:], *_PRIVATE_USE[:first]):
        if chr(code) not in written and _in_ascii(chr(code)) not in written:
            return chr(code)
    raise MessageError("the messages hold every character of Unicode's private use")


def _in_ascii(mark: str) -> str:
    """Return how JSON in ASCII spells a mark."""
    return f"\\u{ord(mark):04x}"
