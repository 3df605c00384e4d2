"""``Llama.chat`` with the model of the package, and with one that has no template."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.chat_models import EOT, TEMPLATE, script, talking
from support.fake_model import BOS

import pyrllama
from pyrllama.chat.template import TemplateSource
from pyrllama.core import FinishReason
from pyrllama.data import default_model_path
from pyrllama.errors import ChatTemplateError, MessageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.llama import Llama

HELLO = [{"role": "user", "content": "a"}]
DOG = [{"role": "user", "content": "Tell me a story about a dog and a red ball."}]


@pytest.fixture(scope="module")
def stories() -> Iterator[Llama]:
    """Return the packaged model on the reference."""
    with pyrllama.load(default_model_path(), backend="reference") as llama:
        yield llama


def test_an_answer(stories: Llama) -> None:
    completion = stories.chat(DOG, temperature=0, max_tokens=20)
    assert completion.text.startswith(" Once upon a time, there was a dog. The dog had")
    assert completion.prompt_tokens[:2] == (1, 3)
    assert completion.prompt_tokens[-1] == 4
    assert completion.finish is FinishReason.LENGTH
    assert len(completion.tokens) == 20


def test_the_answer_streams(stories: Llama) -> None:
    tokens = list(stories.stream_chat(DOG, temperature=0, max_tokens=20))
    whole = stories.chat(DOG, temperature=0, max_tokens=20)
    assert "".join(token.text for token in tokens) == whole.text
    assert tuple(token.id for token in tokens) == whole.tokens


def test_the_answer_comes_through_asyncio_too(stories: Llama) -> None:
    async def ask() -> tuple[str, str]:
        llama = pyrllama.AsyncLlama(stories)  # not closed: other tests use the model
        tokens = llama.stream_chat(DOG, temperature=0, max_tokens=20)
        streamed = [token.text async for token in tokens]
        whole = await llama.chat(DOG, temperature=0, stop="there was")
        return "".join(streamed), whole.text

    streamed, whole = asyncio.run(ask())
    assert streamed == stories.chat(DOG, temperature=0, max_tokens=20).text
    assert whole == " Once upon a time, "


def test_a_stop_text(stories: Llama) -> None:
    completion = stories.chat(DOG, temperature=0, stop=["there was"])
    assert completion.text == " Once upon a time, "
    assert completion.finish is FinishReason.STOP


def test_prompts_can_be_looked_at(stories: Llama) -> None:
    prompt = stories.chat_prompt([{"role": "user", "content": "<|user|> Hi </s>"}])
    assert prompt.rendering.parts == (1, 3, "<|user|> Hi </s>", 4)
    pieces = [stories.chat_encoder.piece(token) for token in prompt.tokens]
    assert pieces[:2] + pieces[-1:] == ["<s>", "<|user|>", "<|assistant|>"]
    assert prompt.tokens.count(1) == 1


def test_a_model_without_a_template() -> None:
    llama = talking(script([BOS, *b"[a]"], "b"))
    with pytest.raises(ChatTemplateError, match="the model: the chat template is not there"):
        llama.chat([{"role": "user", "content": "a"}])
    completion = llama.chat([{"role": "user", "content": "a"}], template=TEMPLATE, temperature=0)
    assert completion.text == "b"


def test_an_answer_ends_where_the_template_ends_one() -> None:
    """Also where the vocabulary does not tell that the token ends a turn."""
    text = "{% for m in messages %}{{ m.content }}{{ '<turn>' if m.role != 'user' }}{% endfor %}"
    template = TemplateSource(text, "test")
    llama = talking(script([BOS, *b"a"], "b", end=False) | {3: EOT})
    assert llama.chat_prompt(HELLO, template=template).end_ids == {EOT}
    completion = llama.chat(HELLO, template=template, temperature=0)
    assert completion.finish is FinishReason.STOP
    assert completion.tokens == (98, EOT)


def test_a_template_that_wants_other_messages_tells_no_end() -> None:
    text = "{{ raise_exception('') if messages | length > 1 else messages[0].content }}"
    template = TemplateSource(text, "test")
    assert talking().chat_prompt(HELLO, template=template).end_ids == frozenset()


def test_wrong_messages(stories: Llama) -> None:
    with pytest.raises(MessageError, match="message 0 has the role 'robot'"):
        stories.chat([{"role": "robot", "content": "a"}])


def test_arguments_of_the_template() -> None:
    text = "<s>{{ mood }}{{ messages[0].content }}{{ tools | length }}"
    template = TemplateSource(text, "test")
    llama = talking()
    tool = {"type": "function", "function": {"name": "f"}}
    prompt = llama.chat_prompt(
        [{"role": "user", "content": "a"}],
        [tool],
        template=template,
        template_arguments={"mood": "b"},
    )
    assert prompt.tokens == [BOS, *b"ba1"]


def test_jinja_is_imported_when_a_conversation_begins() -> None:
    import subprocess  # noqa: PLC0415 - this test alone
    import sys  # noqa: PLC0415

    code = "import sys, pyrllama.llama, pyrllama.cli.chat; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
