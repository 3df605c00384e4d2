"""A conversation: its turns, what of them the context holds, and the next answer.

When the context is full, whole turns are dropped, the oldest first, behind the system prompt.
They stay in the conversation and only leave the model's sight.  So much is dropped at once
that a quarter of the context is free again: what remains begins at another turn, so its keys
and values have to be computed anew, which must not happen at each turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrllama.chat.messages import OPENING_ROLES, checked_messages
from pyrllama.errors import MessageError, PromptTooLongError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pyrllama.chat.answer import Answer
    from pyrllama.chat.messages import Message
    from pyrllama.chat.template import TemplateSource
    from pyrllama.core import Sampling
    from pyrllama.llama import Llama

NEEDED_SHARE = 8
"""An answer must find this part of the context free, or else turns are dropped."""
FREED_SHARE = 4
"""The part of the context that is free again when turns were dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """How answers are made; the fields are those of ``Llama.chat``."""

    template: str | Path | TemplateSource | None = None
    template_arguments: Mapping[str, Any] | None = None
    writing: Mapping[str, Any] = field(default_factory=dict)
    """``WritingSettings``: what is set of the sampler and of the answer's form."""
    base: Sampling | None = None
    """What the sampler's other settings are; None is the model's own and then the defaults."""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    context_shift: bool = False
    verbatim: bool = False
    """Keep the white space around answers and, as ``ending``, the stop text behind them."""


class ContextState(NamedTuple):
    """How full the context is."""

    tokens: int
    """Tokens that the last prompt and its answer take."""
    limit: int
    """Tokens that the context holds."""


class Conversation:
    """Turns of a user and a model; ``settings`` may be changed between them."""

    def __init__(
        self,
        llama: Llama,
        settings: ChatSettings | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.settings = settings or ChatSettings()
        self.dropped = 0
        """Turns that the model does not see any more."""
        self.dropped_now = 0
        """Turns that the last answer had to do without for the first time."""
        self.answer: Answer | None = None
        """The last answer, which may still be on its way."""
        self._llama = llama
        self._messages: list[Message] = checked_messages(messages) if messages else []

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, those of dropped turns too."""
        return tuple(self._messages)

    @property
    def system(self) -> str | None:
        """The system prompt; None for none."""
        first = self._messages[0] if self._messages else None
        return first["content"] if first and first["role"] in OPENING_ROLES else None

    @system.setter
    def system(self, text: str | None) -> None:
        del self._messages[: self._opening()]
        if text:
            self._messages.insert(0, {"role": "system", "content": text})

    @property
    def state(self) -> ContextState:
        """How full the context is; nothing counts before the first answer."""
        tokens = 0 if self.answer is None else self.answer.context_tokens
        return ContextState(tokens, self._llama.max_seq_len)

    @property
    def last_question(self) -> str | None:
        """What the user said last; None before that."""
        starts = self._turn_starts()
        return self._messages[starts[-1]]["content"] if starts else None

    def ask(self, text: str) -> Answer:
        """Say something and return the answer, which becomes part of the conversation.

        What came of an answer until it is closed is kept; a question that got none gives way to
        this one, for many templates want turns to alternate.  Raises what ``Llama.stream_chat``
        raises, and leaves the conversation as it was.
        """
        self.close()
        before = list(self._messages)
        if before and before[-1]["role"] == "user":
            self._messages.pop()
        self._messages.append({"role": "user", "content": text})
        try:
            return self._answered()
        except BaseException:
            self._messages = before
            raise

    def retry(self) -> Answer:
        """Answer the last question again; raises ``MessageError`` before the first one."""
        self.close()
        starts = self._turn_starts()
        if not starts:
            raise MessageError("there is nothing yet to answer again")
        before = list(self._messages)
        del self._messages[starts[-1] + 1 :]
        try:
            return self._answered()
        except BaseException:
            self._messages = before
            raise

    def undo(self) -> str:
        """Take back the last question with its answer, and return the question.

        Raises ``MessageError`` before the first one.
        """
        self.close()
        starts = self._turn_starts()
        if not starts:
            raise MessageError("there is nothing yet to take back")
        question: str = self._messages[starts[-1]]["content"]
        del self._messages[starts[-1] :]
        self.dropped = min(self.dropped, max(len(starts) - 2, 0))
        return question

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.close()
        del self._messages[self._opening() :]
        self.dropped = self.dropped_now = 0
        self.answer = None

    def replace(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Go on with other messages; raises ``MessageError`` and changes nothing then."""
        checked = checked_messages(messages) if messages else []
        self.clear()
        self._messages = checked

    def close(self) -> None:
        """End an answer that is still on its way; what came of it is kept."""
        if self.answer is not None:
            self.answer.close()

    def prompt_tokens(self, dropped: int = 0) -> list[int]:
        """Return the prompt's ids for the messages as they are, without the first turns."""
        return self._llama.chat_prompt(
            self._seen(dropped),
            template=self.settings.template,
            template_arguments=self.settings.template_arguments,
        ).tokens

    def _answered(self) -> Answer:
        before, self.dropped_now = self.dropped, 0
        self.dropped = self._fitting()
        try:
            answer = self._llama.stream_chat(
                self._seen(self.dropped),
                template=self.settings.template,
                template_arguments=self.settings.template_arguments,
                max_tokens=self.settings.max_tokens,
                stop=self.settings.stop,
                context_shift=self.settings.context_shift,
                on_end=self._keep,
                sampling=self.settings.base,
                **self.settings.writing,
            )
        except BaseException:
            self.dropped = before
            raise
        self.dropped_now = self.dropped - before
        self.answer = answer
        return answer

    def _keep(self, answer: Answer) -> None:
        """Take up an answer that has ended, even one that was cut short."""
        text = answer.text if self.settings.verbatim else answer.text.strip()
        if not text:
            return
        message: Message = {"role": "assistant", "content": text}
        if self.settings.verbatim and answer.ending is not None:
            message["ending"] = answer.ending
        self._messages.append(message)

    def _fitting(self) -> int:
        """Return how many turns to drop so that an answer has room."""
        limit = self._llama.max_seq_len
        most = self.settings.max_tokens or limit
        last = len(self._turn_starts()) - 1
        dropped = min(self.dropped, last)
        length = len(self.prompt_tokens(dropped))
        if length + min(most, limit // NEEDED_SHARE) <= limit:
            return dropped
        while dropped < last and length + limit // FREED_SHARE > limit:
            dropped += 1
            length = len(self.prompt_tokens(dropped))
        if length >= limit:
            raise PromptTooLongError(length, limit)
        return dropped

    def _seen(self, dropped: int) -> list[Message]:
        """Return the messages without the first turns."""
        opening, starts = self._opening(), self._turn_starts()
        begin = starts[dropped] if dropped else opening
        return self._messages[:opening] + self._messages[begin:]

    def _opening(self) -> int:
        """Return how many messages are the system prompt."""
        roles = [message["role"] for message in self._messages]
        return next((i for i, role in enumerate(roles) if role not in OPENING_ROLES), len(roles))

    def _turn_starts(self) -> list[int]:
        """Return where the user's questions are; what follows each belongs to its turn."""
        return [i for i, message in enumerate(self._messages) if message["role"] == "user"]
