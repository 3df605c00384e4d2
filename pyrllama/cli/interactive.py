"""``--start-interactive``: the original RLLaMA's conversations, with the flags that it had.

Its text is put together plainly - the system prompt, then for each message a prefix, what was
typed and a postfix, then what the model says up to a stop text - so it is a template too, and
the rest is ``rllama chat``.  The defaults are the original's, made for Vicuna 13B of 2023.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import click

from pyrllama.chat.conversation import ChatSettings, Conversation
from pyrllama.chat.template import TemplateSource
from pyrllama.cli.chat_input import LineReader, TerminalReader, is_interactive
from pyrllama.cli.chat_session import ChatSession, command_names
from pyrllama.cli.terminal import note
from pyrllama.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cli.options import Decorator
    from pyrllama.cli.sampling_options import SamplingOptions
    from pyrllama.llama import Llama

SYSTEM_PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, terse answers to the human's questions.### Human:"
)
PREFIX = " "
POSTFIX = "### Assistant:"
STOPS = ("### Human:", "###Human:")
"""Where the answer ends; the original also lists them with white space around, as its own."""
_BEFORE_STOP = ("", " ", "\n", "\n ")

TEMPLATE = TemplateSource(
    """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- prefix + message.content + postfix }}
    {%- elif message.role == "assistant" %}
        {{- message.content + (message.ending or ending) }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}""",
    "--start-interactive",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractiveOptions:
    """The options of ``interactive_options`` as click hands them over."""

    start_interactive: bool
    interactive_system_prompt: str
    interactive_prompt_prefix: str
    interactive_prompt_postfix: str
    interactive_stop: tuple[str, ...]

    @classmethod
    def taken_from(cls, values: dict[str, Any]) -> Self:
        """Take these options out of those of a command."""
        return cls(**{field.name: values.pop(field.name) for field in dataclasses.fields(cls)})

    def settings(self, sampling: SamplingOptions, max_tokens: int | None) -> ChatSettings:
        """Return how answers are made; raises as ``SamplingOptions.settings`` does."""
        writing: dict[str, Any] = {**sampling.settings()}
        further = writing.pop("stop")
        stops = self.interactive_stop or tuple(
            before + stop for stop in STOPS for before in _BEFORE_STOP
        )
        return ChatSettings(
            template=TEMPLATE,
            template_arguments={
                "prefix": self.interactive_prompt_prefix,
                "postfix": self.interactive_prompt_postfix,
                "ending": stops[0],
            },
            writing=writing,
            base=sampling.base,
            max_tokens=max_tokens,
            stop=(*stops, *further),
            verbatim=True,
        )


def interactive_options() -> Decorator:
    """Return the original's options for conversations, those of ``InteractiveOptions``."""
    options = (
        click.option(
            "--start-interactive",
            is_flag=True,
            help="Talk with the model as the original RLLaMA did; 'rllama chat' does it better.",
        ),
        click.option(
            "--interactive-system-prompt",
            default=SYSTEM_PROMPT,
            metavar="TEXT",
            help="Text before the first message.  [default: Vicuna's]",
        ),
        click.option(
            "--interactive-prompt-prefix",
            default=PREFIX,
            metavar="TEXT",
            help="Text before each message.  [default: a space]",
        ),
        click.option(
            "--interactive-prompt-postfix",
            default=POSTFIX,
            show_default=True,
            metavar="TEXT",
            help="Text behind each message.",
        ),
        click.option(
            "--interactive-stop",
            multiple=True,
            metavar="TEXT",
            help=f"Text at which an answer ends; may be repeated.  [default: {STOPS[0]}]",
        ),
    )

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def check_no_prompt(*given: object) -> None:
    """Raise ``PromptError`` for a prompt beside ``--start-interactive``."""
    if any(value is not None for value in given):
        raise PromptError(
            "--start-interactive takes no prompt; --interactive-system-prompt is what the text "
            "begins with"
        )


def converse(llama: Llama, system: str, settings: ChatSettings, *, quiet: bool) -> int:
    """Converse with whoever sits at the terminal, or with the lines of a pipe."""
    conversation = Conversation(llama, settings)
    conversation.system = system
    session = ChatSession(llama, conversation, quiet=quiet)
    if not is_interactive():
        session.run(LineReader(sys.stdin))
        return 0
    if not quiet:
        note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    session.run(TerminalReader(None, command_names(), session.toolbar))
    return 0
