"""A chat template: Jinja text that turns messages into the prompt that a model was trained on.

It renders as ``apply_chat_template`` of transformers does, in a metered sandbox.  Whatever
goes wrong is a ``ChatTemplateError`` with where the template is from and the line.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pyrllama.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from jinja2 import Template

    from pyrllama.chat.sandbox import TemplateEnvironment

MAX_SOURCE = 256 << 10
"""Characters of a template; the longest published ones have a tenth of it."""
_LONGEST_MESSAGE = 500
_FILE_NAME = "<template>"
"""What Jinja2 calls a template that has no name of its own in tracebacks."""


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """The text of a template and where it is from, for people."""

    text: str
    origin: str
    stop: tuple[str, ...] = ()
    """Texts that end an answer beside the model's own end tokens."""


class ChatTemplate:
    """A compiled template; it may be used from several threads."""

    def __init__(self, source: TemplateSource, *, bos: str = "", eos: str = "") -> None:
        """Compile it; ``bos`` and ``eos`` are the spellings that it may put out.

        Raises ``ChatTemplateError`` for a text that is no template.
        """
        self.source = source
        self._spellings = {"bos_token": bos, "eos_token": eos}
        self._lock = threading.Lock()
        if len(source.text) > MAX_SOURCE:
            raise self._wrong(f"has {len(source.text)} characters, over {MAX_SOURCE}")
        self._environment, self._template = self._compile(source.text)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt for messages of plain values (those of JSON).

        ``arguments`` are further variables, such as ``enable_thinking``.  Raises
        ``ChatTemplateError`` for a template that fails, refuses the messages, or uses too much.
        """
        from pyrllama.chat.meter import Meter  # noqa: PLC0415 - takes Jinja2, 30 ms

        variables = {
            **self._spellings,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **(arguments or {}),
        }
        with self._lock:
            try:
                self._environment.meter = Meter(variables)
                self._environment.now = now or datetime.now().astimezone()
                return self._environment.concat(self._template.generate(variables))
            except Exception as error:
                raise self._failed(error) from None

    def _compile(self, text: str) -> tuple[TemplateEnvironment, Template]:
        from jinja2 import TemplateSyntaxError  # noqa: PLC0415

        from pyrllama.chat.sandbox import TemplateEnvironment  # noqa: PLC0415

        environment = TemplateEnvironment()
        try:
            return environment, environment.from_string(text)
        except TemplateSyntaxError as error:
            problem = f"is no Jinja template that can be used: {_short(error.message)}"
            raise self._wrong(problem, error.lineno) from None
        except Exception as error:  # Python's own limits: nesting, long numbers
            raise self._wrong(f"cannot be compiled: {_described(error)}") from None

    def _failed(self, error: Exception) -> ChatTemplateError:
        """Turn what a rendering raised into our own error."""
        from jinja2 import TemplateError, UndefinedError  # noqa: PLC0415

        from pyrllama.chat.meter import LimitError  # noqa: PLC0415

        line = _line(error.__traceback__)
        if isinstance(error, LimitError):
            return self._wrong(f"was stopped: {_short(error)}", line)
        if isinstance(error, UndefinedError):
            return self._wrong(f"uses what is not there: {_short(error)}", line)
        if type(error) is TemplateError:
            return self._wrong(f"refuses this conversation: {_short(error)}", line)
        return self._wrong(f"fails: {_described(error)}", line)

    def _wrong(self, problem: str, line: int | None = None) -> ChatTemplateError:
        return ChatTemplateError(self.source.origin, problem, line)


def _line(trace: TracebackType | None) -> int | None:
    """Return the template's line in which an error arose; Jinja2 has put it into the trace."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE_NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(error)}"


def _short(error: object) -> str:
    text = str(error)
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."
