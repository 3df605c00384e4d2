"""``Llama.chat``: messages in, an answer out, in the form that the model was trained on."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrllama.chat.answer import Answer
from pyrllama.chat.messages import OPENING_ROLES, checked_messages, checked_tools
from pyrllama.chat.template import ChatTemplate
from pyrllama.errors import ChatTemplateError, SettingError
from pyrllama.request_maker import GenerationSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Unpack

    from pyrllama.chat.encoder import ChatEncoder
    from pyrllama.chat.messages import Message
    from pyrllama.chat.rendering import Rendering
    from pyrllama.chat.sources import Templates
    from pyrllama.chat.template import TemplateSource
    from pyrllama.core import Completion, Sampling
    from pyrllama.token_stream import TokenStream
    from pyrllama.tokenizer import Tokenizer


STRUCTURES = ("json_schema", "regex", "grammar")
"""Forms of an answer, which a shift would begin anew."""
SEEDS = 2**64
"""Numbers that can be a seed."""
_ANSWER = "Certainly."
_EXCHANGE: list[Message] = [
    {"role": "user", "content": "Really?"},
    {"role": "assistant", "content": _ANSWER},
]
"""What is rendered to see how a template ends an answer."""


class ChatPrompt(NamedTuple):
    """What a conversation is for the model: token ids, and the rendering that they are of."""

    tokens: list[int]
    rendering: Rendering
    stop: tuple[str, ...]
    """Texts that end the answer in the template's form."""
    end_ids: frozenset[int]
    """Control tokens that end it in that form."""


class AnswerSettings(GenerationSettings, total=False):
    """What a caller may say of an answer.

    ``template`` is the name or the file of a chat template, by default the model's own, and
    ``template_arguments`` are further variables for it.  ``context_shift`` lets the answer go on
    over a full context, whose older half is then forgotten.  The rest is as in ``generate``.
    """

    sampling: Sampling | None
    max_tokens: int | None
    template: str | Path | TemplateSource | None
    template_arguments: Mapping[str, Any] | None
    context_shift: bool


class Chat:
    """What ``Llama`` can do with conversations."""

    tokenizer: Tokenizer
    max_seq_len: int
    templates: Templates | None
    """The model's chat templates; None where a model was put together without files."""

    if TYPE_CHECKING:

        def stream(
            self,
            prompt: str | Sequence[int],
            *,
            sampling: Sampling | None = None,
            max_tokens: int | None = None,
            **settings: Unpack[GenerationSettings],
        ) -> TokenStream:
            """Yield the tokens of a continuation."""

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **settings: Unpack[AnswerSettings],
    ) -> Completion:
        """Return the answer to the messages of a conversation.

        Messages have the form of OpenAI's chat API (``{"role": "user", "content": "Hello"}``),
        tools too.  They are rendered by the model's chat template, or by another one, as
        ``AnswerSettings`` says.

        Raises ``ChatTemplateError`` or ``MessageError``, and what ``generate`` raises.
        """
        answer = self.stream_chat(messages, tools, **settings)
        for _ in answer:
            pass
        return answer.completion()

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        on_end: Callable[[Answer], None] | None = None,
        **settings: Unpack[AnswerSettings],
    ) -> Answer:
        """Yield the tokens of an answer as they come; see ``chat``.

        ``on_end`` is called once with the answer when it has ended or was closed.
        """
        rest: dict[str, Any] = dict(settings)
        template, arguments = rest.pop("template", None), rest.pop("template_arguments", None)
        stop, max_tokens = rest.pop("stop", ()), rest.pop("max_tokens", None)
        context_shift = rest.pop("context_shift", False)
        if context_shift and any(rest.get(name) is not None for name in STRUCTURES):
            raise SettingError("context_shift", context_shift, "off where the answer has a form")
        prompt = self.chat_prompt(messages, tools, template=template, template_arguments=arguments)
        sampling: Sampling | None = rest.get("sampling")
        seed = rest.get("seed", None if sampling is None else sampling.seed)

        def start(tokens: Sequence[int], most: int | None, shifts: int) -> TokenStream:
            if seed is not None:  # what follows a shift must not repeat what came before
                rest["seed"] = (seed + shifts) % SEEDS
            return self.stream(tokens, max_tokens=most, **rest)

        def ended(answer: Answer) -> None:
            ids = answer.completion().tokens
            ends = self.tokenizer.stop_ids | prompt.end_ids
            said = ids[:-1] if ids and ids[-1] in ends else ids
            if not answer.shifts:
                self.chat_encoder.remember(prompt.rendering, prompt.tokens, said)
            if on_end is not None:
                on_end(answer)

        keep = self._opening_tokens(messages, template) if context_shift else None
        return Answer(
            start,
            prompt.tokens,
            max_tokens=max_tokens,
            stop=(*prompt.stop, *((stop,) if isinstance(stop, str) else stop)),
            end_ids=prompt.end_ids,
            keep=keep,
            on_end=ended,
        )

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        template: str | Path | TemplateSource | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """Return the prompt that a conversation is for the model; see ``chat``.

        Control tokens that a message spells stay text; BOS comes once.
        """
        checked, described = checked_messages(messages), checked_tools(tools)
        compiled = self.chat_template(template, tools=described is not None)
        rendering = self.chat_encoder.renderer.render(
            compiled, checked, described, template_arguments
        )
        tokens = self.chat_encoder.encode(rendering)
        return ChatPrompt(tokens, rendering, compiled.source.stop, self._end_ids(compiled))

    def chat_template(
        self, wanted: str | Path | TemplateSource | None = None, *, tools: bool = False
    ) -> ChatTemplate:
        """Return the compiled template for a conversation; raises ``ChatTemplateError``."""
        from pyrllama.chat.sources import choose_template  # noqa: PLC0415

        source = choose_template(self.templates, wanted, tools=tools)
        if source not in self._compiled:
            spelling = self.chat_encoder.spelling
            bos, eos = spelling(self.tokenizer.bos_id), spelling(self.tokenizer.eos_id)
            self._compiled[source] = ChatTemplate(source, bos=bos, eos=eos)
        return self._compiled[source]

    @cached_property
    def chat_encoder(self) -> ChatEncoder:
        """What makes token ids of rendered conversations."""
        from pyrllama.chat.encoder import ChatEncoder  # noqa: PLC0415

        return ChatEncoder(self.tokenizer)

    def _end_ids(self, template: ChatTemplate) -> frozenset[int]:
        """Return the control token that a template puts behind an answer, if it does.

        It is what the model learned to end its turns with, and not every vocabulary tells.
        """
        if template.source not in self._ends:
            try:
                parts = self.chat_encoder.renderer.render(
                    template, _EXCHANGE, add_generation_prompt=False
                ).parts
            except ChatTemplateError:  # it wants other messages, whose end it does not tell
                parts = ()
            behind = [
                end
                for part, end in pairwise(parts)
                if isinstance(part, str) and part.strip().endswith(_ANSWER) and isinstance(end, int)
            ]
            self._ends[template.source] = frozenset(behind)
        return self._ends[template.source]

    @cached_property
    def _ends(self) -> dict[TemplateSource, frozenset[int]]:
        return {}

    @cached_property
    def _compiled(self) -> dict[TemplateSource, ChatTemplate]:
        return {}

    def _opening_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        template: str | Path | TemplateSource | None,
    ) -> int:
        """Return how many tokens a shift keeps: what two conversations of this system share.

        At most half the context, so that something is left to drop.
        """
        opening: list[Message] = []
        for message in checked_messages(messages):
            if message["role"] not in OPENING_ROLES:
                break
            opening.append(message)
        one, other = (
            self.chat_prompt([*opening, {"role": "user", "content": text}], template=template)
            for text in "01"
        )
        return min(_shared(one.tokens, other.tokens), self.max_seq_len // 2)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids two lists have in common before they part."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
