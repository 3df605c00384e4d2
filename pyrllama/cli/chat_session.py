"""A conversation at the terminal: reads messages and commands, shows answers and what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.cli import figures
from pyrllama.cli.chat_commands import COMMANDS, run_command, sampler_settings
from pyrllama.cli.chat_view import MarkdownView, PlainView
from pyrllama.cli.terminal import note, print_error, printable, stdout
from pyrllama.core import FinishReason
from pyrllama.errors import RllamaError
from pyrllama.sampling_settings import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyrllama.chat.answer import Answer
    from pyrllama.chat.conversation import Conversation
    from pyrllama.cli.chat_input import Reader
    from pyrllama.cli.chat_view import View
    from pyrllama.core import Sampling
    from pyrllama.llama import Llama

STOPPED = "stopped; what has come so far is kept"


class ChatSession:
    """One conversation between a reader's messages and a model."""

    def __init__(
        self,
        llama: Llama,
        conversation: Conversation,
        *,
        markdown: bool = False,
        show_tokens: bool = False,
        model_name: str = "",
        quiet: bool = False,
    ) -> None:
        self.llama = llama
        self.conversation = conversation
        self.draft = ""
        """What the next message begins with, for the user to edit."""
        self.saved_to: Path | None = None
        self.over = False
        self._markdown = markdown
        self._show_tokens = show_tokens
        self._model_name = model_name
        self._quiet = quiet
        self._console = stdout()

    def run(self, reader: Reader) -> None:
        """Converse until the reader ends or ``/quit``."""
        while not self.over:
            draft, self.draft = self.draft, ""
            try:
                text = reader.read(draft)
            except KeyboardInterrupt:  # the line is thrown away, as a shell does it
                continue
            if text is None:
                return
            self.handle(text)

    def handle(self, text: str) -> None:
        """Run a command or answer a message; an error is shown and nothing is over."""
        try:
            if text.startswith("/"):
                run_command(self, text)
            elif text.strip():
                self.show_answer(lambda: self.conversation.ask(text))
        except RllamaError as error:
            print_error(str(error))

    def show_answer(self, ask: Callable[[], Answer]) -> FinishReason:
        """Show an answer as it comes; Ctrl-C ends it and keeps what came."""
        answer = ask()
        self._tell_of_dropped()
        self._tell_tokens("prompt", answer.prompt)
        finish = FinishReason.CANCELLED
        try:
            with self._view() as view:
                for token in answer:
                    view.show(token.text)
                    finish = token.finish or finish
        except KeyboardInterrupt:
            answer.close()
            self._tell(STOPPED)
        finally:
            answer.close()
        self._tell_tokens("answer", answer.completion().tokens)
        self._tell_of_end(answer, finish)
        return finish

    def toolbar(self) -> str:
        """Return the line under the input: the model, and how full the context is."""
        state = self.conversation.state
        parts = [self._model_name, f"context {state.tokens} of {state.limit} tokens"]
        if dropped := self.conversation.dropped:
            parts.append("1 turn dropped" if dropped == 1 else f"{dropped} turns dropped")
        parts.append(f"temperature {self.sampling.temperature:g}")
        return printable(" | ".join([*parts, "/help"]))

    @property
    def sampling(self) -> Sampling:
        """The settings of the sampler that are in force."""
        settings = self.conversation.settings
        model = self.llama.model_settings if settings.base is None else None
        return resolve(request=sampler_settings(settings), model=model).sampling

    def figures(self) -> str | None:
        """Return the figures of the last answer; None before the first."""
        answer = self.conversation.answer
        if answer is None:
            return None
        return figures.figures_line(answer.completion(), self.llama.model.decode_bytes)

    def _view(self) -> View:
        return MarkdownView(self._console) if self._markdown else PlainView(self._console)

    def _tell(self, message: str) -> None:
        if not self._quiet:
            note(message)

    def _tell_of_dropped(self) -> None:
        now = self.conversation.dropped_now
        if now:
            what = "the oldest turn was" if now == 1 else f"the {now} oldest turns were"
            self._tell(
                f"the context is full: {what} dropped, which the model does not see any more"
            )

    def _tell_of_end(self, answer: Answer, finish: FinishReason) -> None:
        """Say why an answer ended where that is not plain to see."""
        if answer.shifts:
            self._tell(
                f"the context was full: its older half was dropped "
                f"{'once' if answer.shifts == 1 else f'{answer.shifts} times'} on the way"
            )
        if finish is not FinishReason.LENGTH:
            return
        if self.conversation.state.tokens >= self.llama.max_seq_len:
            self._tell(
                "the answer ends here as the context is full; --context-shift lets it go on, "
                "--max-seq-len makes room"
            )
        else:
            self._tell("the answer ends here as --max-tokens says")

    def _tell_tokens(self, name: str, tokens: tuple[int, ...]) -> None:
        """List ids and pieces if they were asked for."""
        if not self._show_tokens:
            return
        pieces = (f"{token} {self.llama.chat_encoder.piece(token)!r}" for token in tokens)
        note(f"{name}, {len(tokens)} tokens: " + ", ".join(pieces))


def command_names() -> list[str]:
    """Return the commands as they are typed."""
    return [f"/{name}" for name in COMMANDS]
