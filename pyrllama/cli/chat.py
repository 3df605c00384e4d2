"""``rllama chat``: a conversation with a model, at a terminal or through a pipe."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyrllama.chat.conversation import ChatSettings, Conversation
from pyrllama.chat.files import load_messages
from pyrllama.cli.chat_input import TerminalReader, default_history, is_interactive
from pyrllama.cli.chat_session import ChatSession, command_names
from pyrllama.cli.model import ModelOptions, model_options
from pyrllama.cli.options import PATH
from pyrllama.cli.prompt import MAX_PROMPT_BYTES, read_prompt, read_text
from pyrllama.cli.reuse_options import ReuseOptions, reuse_options
from pyrllama.cli.sampling_options import SamplingOptions, sampling_options
from pyrllama.cli.terminal import note
from pyrllama.core import FinishReason, as_dict
from pyrllama.errors import PromptError
from pyrllama.loading import CHAT_MAX_SEQ_LEN

if TYPE_CHECKING:
    from pyrllama.llama import Llama

EXIT_INTERRUPTED = 130

EPILOG = """\b
Examples:
  rllama chat
  rllama chat --model-path model.gguf --system "Answer in one sentence."
  rllama chat --model-path LLaMA/7B --chat-template vicuna --temperature 0.7
  echo "Tell me a story about a dog." | rllama chat
  rllama chat --prompt "Tell me a story about a cat." --json

At a terminal /help lists the commands; Ctrl-C stops an answer and keeps it, Ctrl-D leaves. What is
piped in is one message, and only the answer comes out.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ModelOptions, ReuseOptions):
    """The command's options as click hands them over."""

    prompt: str | None
    system: str | None
    saved: Path | None
    chat_template: str | None
    template_argument: tuple[str, ...]
    max_seq_len: int | None
    max_tokens: int | None
    sampling: SamplingOptions
    context_shift: bool
    show_tokens: bool
    markdown: bool
    history: Path | None
    keep_history: bool
    as_json: bool
    quiet: bool

    def chat_settings(self) -> ChatSettings:
        """Return how answers are made; raises as ``SamplingOptions.settings`` does."""
        writing: dict[str, Any] = {**self.sampling.settings()}
        return ChatSettings(
            template=self.chat_template,
            template_arguments=dict(map(_argument, self.template_argument)),
            stop=writing.pop("stop"),
            writing=writing,
            base=self.sampling.base,
            max_tokens=self.max_tokens,
            context_shift=self.context_shift,
        )


@click.command(epilog=EPILOG, short_help="Talk with a model.")
@model_options()
@reuse_options()
@click.option("--prompt", help="Answer this one message and end.")
@click.option("--system", metavar="TEXT", help="System prompt: how the model is to behave.")
@click.option(
    "--load", "saved", type=PATH, metavar="FILE", help="Go on with a conversation from /save."
)
@click.option(
    "--chat-template",
    metavar="NAME|FILE",
    help="Chat template: a file with Jinja, the name of one that the model has, or a plain form: "
    "alpaca, vicuna, chatml, llama2, llama3. By default the model's own.",
)
@click.option(
    "--template-argument",
    multiple=True,
    metavar="NAME=VALUE",
    help="Variable for the template, such as enable_thinking=false; may be repeated.",
)
@click.option(
    "--max-seq-len",
    type=int,
    help="Tokens of the whole conversation.  [default: 4096, or the model's context]",
)
@click.option("--max-tokens", type=int, help="Tokens of an answer at most.")
@sampling_options()
@click.option(
    "--context-shift",
    is_flag=True,
    help="When the context fills up during an answer, forget its older half and go on.",
)
@click.option(
    "--show-tokens", is_flag=True, help="Print the ids and pieces of prompts and answers."
)
@click.option(
    "--markdown/--no-markdown",
    default=True,
    help="Whether to lay out Markdown at a terminal.  [default: yes]",
)
@click.option(
    "--history",
    type=PATH,
    metavar="FILE",
    help="Where to keep what you type.  [default: in your folder for programs' state]",
)
@click.option("--no-history", "keep_history", flag_value=False, default=True, help="Keep nothing.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Answer --prompt or standard input with one JSON object: text, tokens, timings.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but the answers and errors.")
def chat(**values: Any) -> int:
    """Talk with a model in the form that it was trained on."""
    options = Options(sampling=SamplingOptions.taken_from(values), **values)
    settings = options.chat_settings()
    messages = [] if options.saved is None else load_messages(options.saved)
    interactive = options.prompt is None and not options.as_json and is_interactive()
    question = None if interactive else _question(options.prompt)
    quiet = options.quiet or not interactive
    reuse = options.settings(options.chosen_backend, quiet=quiet)
    with options.load(
        max_seq_len=options.max_seq_len, quiet=quiet, usual_seq_len=CHAT_MAX_SEQ_LEN, **reuse
    ) as llama:
        # Found and compiled before anything is typed, and a file is not read again.
        template = llama.chat_template(settings.template).source
        settings = dataclasses.replace(settings, template=template)
        conversation = Conversation(llama, settings, messages)
        if options.system is not None:
            conversation.system = options.system
        if question is None:
            return _converse(llama, conversation, options)
        if options.as_json:
            return _print_json(llama, conversation, question)
        session = ChatSession(
            llama, conversation, show_tokens=options.show_tokens, quiet=options.quiet
        )
        finish = session.show_answer(lambda: conversation.ask(question))
        return EXIT_INTERRUPTED if finish is FinishReason.CANCELLED else 0


def _converse(llama: Llama, conversation: Conversation, options: Options) -> int:
    """Let a person at a terminal talk with the model."""
    session = ChatSession(
        llama,
        conversation,
        markdown=options.markdown,
        show_tokens=options.show_tokens,
        model_name=options.model_name,
        quiet=options.quiet,
    )
    history = (options.history or default_history()) if options.keep_history else None
    if not options.quiet:
        note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    session.run(TerminalReader(history, command_names(), session.toolbar))
    return 0


def _print_json(llama: Llama, conversation: Conversation, question: str) -> int:
    """Print an answer with everything about it as one JSON object."""
    answer = conversation.ask(question)
    try:
        for _ in answer:
            pass
    except KeyboardInterrupt:
        answer.close()
    completion = answer.completion()
    report = {
        **as_dict(completion),
        "text": completion.text.strip(),
        "messages": conversation.messages,
        "template": llama.chat_template(conversation.settings.template).source.origin,
        "dropped_turns": conversation.dropped,
    }
    click.echo(json.dumps(report))
    return EXIT_INTERRUPTED if completion.finish is FinishReason.CANCELLED else 0


def _question(prompt: str | None) -> str:
    """Return the one message; raises ``PromptError`` where there is none."""
    if prompt is None:
        text = read_text(Path("-"), "message", MAX_PROMPT_BYTES).rstrip("\n")
    else:
        text = read_prompt(prompt, None)
    if not text.strip():
        raise PromptError("there is no message; give one with --prompt or through a pipe")
    return text


def _argument(text: str) -> tuple[str, Any]:
    """Return name and value of ``NAME=VALUE``; a value that is no JSON is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--template-argument")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
