"""Conversations over a fake model: turns, a full context, and answers that are cut short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.chat_models import TEMPLATE, script, talking
from support.fake_model import BOS, EOS

from pyrllama.chat.conversation import ChatSettings, Conversation
from pyrllama.core import FinishReason
from pyrllama.errors import MessageError, PromptTooLongError

if TYPE_CHECKING:
    from pyrllama.llama import Llama

LONG = 128


def begin(llama: Llama, system: str | None = None, **settings: object) -> Conversation:
    changed = {"template": TEMPLATE, "writing": {"temperature": 0}, **settings}
    conversation = Conversation(llama, ChatSettings(**changed))  # type: ignore[arg-type]
    conversation.system = system
    return conversation


def said(conversation: Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages]


def prompt(*texts: str) -> list[int]:
    """Return the ids of a prompt whose answers are every second text."""
    ids = [BOS]
    for i, text in enumerate(texts):
        ids += text.encode() if i % 2 == 0 else [*text.encode(), EOS]
    return ids


def test_turns_build_on_each_other() -> None:
    first = script(prompt("[a]"), "one")
    second = script(prompt("[a]", "one", "[b]"), "two")
    conversation = begin(talking(first | second))
    assert "".join(token.text for token in conversation.ask("a")) == "one"
    answer = conversation.ask("b")
    assert list(answer.prompt) == prompt("[a]", "one", "[b]")
    assert [token.text for token in answer] == ["t", "w", "o", ""]
    assert answer.completion().finish is FinishReason.STOP
    assert said(conversation) == ["a", "one", "b", "two"]
    assert conversation.state == (len(prompt("[a]", "one", "[b]", "two")), 64)


def test_the_system_prompt_comes_first_and_can_be_changed() -> None:
    conversation = begin(talking(), system="s")
    next(conversation.ask("a"))
    conversation.system = "t"
    assert bytes(conversation.ask("b").prompt[1:8]) == b"(t)[a]" + said(conversation)[2].encode()
    conversation.system = None
    assert conversation.system is None
    assert bytes(conversation.ask("c").prompt[1:4]) == b"[a]"


def test_an_answer_that_is_stopped_is_kept() -> None:
    conversation = begin(talking(script(prompt("[a]"), " one two")))
    answer = conversation.ask("a")
    for _ in range(4):
        next(answer)
    answer.close()
    answer.close()
    assert list(answer) == []
    assert conversation.messages[1] == {"role": "assistant", "content": "one"}
    assert answer.completion().finish is FinishReason.CANCELLED
    assert conversation.state.tokens == len(prompt("[a]")) + 4


def test_a_question_without_an_answer_gives_way() -> None:
    conversation = begin(talking(), system="s")
    conversation.ask("a").close()
    answer = conversation.ask("b")
    assert bytes(answer.prompt[1:]) == b"(s)[b]"
    with pytest.raises(PromptTooLongError):
        conversation.ask("c" * 100)
    assert said(conversation) == ["s", "b"]


def test_an_answer_on_its_way_ends_when_the_next_is_asked_for() -> None:
    conversation = begin(talking(script(prompt("[a]"), "one")))
    next(conversation.ask("a"))
    conversation.ask("b")
    assert said(conversation) == ["a", "o", "b"]
    conversation.retry()
    conversation.undo()
    assert said(conversation) == ["a", "o"]


def test_stop_texts_end_an_answer() -> None:
    llama = talking(script(prompt("[a]"), "one STOP two"))
    answer = begin(llama, stop=("STOP",)).ask("a")
    assert "".join(token.text for token in answer) == "one "
    assert answer.completion().text == "one "
    assert answer.completion().finish is FinishReason.STOP
    assert answer.ending == "STOP"


def test_white_space_and_the_ending_are_kept_if_asked_for() -> None:
    conversation = begin(talking(script(prompt("[a]"), " one\nX")), stop=("X",), verbatim=True)
    list(conversation.ask("a"))
    assert conversation.messages[1] == {"role": "assistant", "content": " one\n", "ending": "X"}


def test_a_long_answer_ends_as_asked() -> None:
    answer = begin(talking(), max_tokens=5).ask("a")
    assert [token.finish for token in answer] == [None] * 4 + [FinishReason.LENGTH]


def test_retry_undo_and_clear() -> None:
    answers = script(prompt("[a]"), "one") | script(prompt("[bbbbb]"), "two")
    conversation = begin(talking(answers))
    list(conversation.ask("a"))
    list(conversation.retry())
    assert said(conversation) == ["a", "one"]
    assert conversation.last_question == "a"
    assert conversation.undo() == "a"
    assert said(conversation) == []
    assert begin(talking()).last_question is None
    for empty in (conversation.undo, conversation.retry):
        with pytest.raises(MessageError, match="there is nothing yet"):
            empty()
    list(conversation.ask("bbbbb"))
    assert said(conversation) == ["bbbbb", "two"]
    conversation.system = "s"
    conversation.clear()
    assert said(conversation) == ["s"]
    assert conversation.state.tokens == 0


def test_a_message_that_does_not_fit_leaves_no_trace() -> None:
    conversation = begin(talking())
    with pytest.raises(
        PromptTooLongError, match="the prompt has 103 tokens, but the context holds 64"
    ):
        conversation.ask("a" * 100)
    assert said(conversation) == []
    conversation.ask("a").close()
    conversation.replace([{"role": "user", "content": "b" * 100}])
    with pytest.raises(PromptTooLongError):
        conversation.retry()
    assert len(conversation.messages) == 1


def test_the_oldest_turns_are_dropped_whole_behind_the_system_prompt() -> None:
    conversation = begin(talking(max_seq_len=LONG), system="sys", max_tokens=4)
    seen: list[tuple[int, int]] = []
    for letter in "abcdefghijklmnopqr":
        answer = conversation.ask(f"?{letter}")
        list(answer)
        text = "".join(chr(i) if i < BOS else "|" for i in answer.prompt)
        first = chr(ord("a") + conversation.dropped)
        assert text.startswith(f"|(sys)[?{first}]")
        assert text.endswith(f"[?{letter}]")
        assert text.count("[?") == ord(letter) - ord(first) + 1
        assert len(answer.prompt) + 4 <= LONG
        seen.append((conversation.dropped, conversation.dropped_now))
    # The prompt has 10 tokens and 9 for each turn before: 127 are too many with an answer of 4,
    # and 91 leave a quarter of the context.
    assert seen == [(0, 0)] * 13 + [(4, 4)] + [(4, 0)] * 3 + [(8, 4)]
    assert len(conversation.messages) == 1 + 2 * 18


def test_what_was_dropped_is_seen_again_after_undo() -> None:
    conversation = begin(talking(max_seq_len=LONG), max_tokens=12)
    for number in range(6):
        list(conversation.ask(f"question {number}"))
    assert conversation.dropped > 0
    for _ in range(5):
        conversation.undo()
    assert conversation.dropped == 0
    assert bytes(conversation.ask("x").prompt[1:13]) == b"[question 0]"


def test_a_full_context_ends_an_answer() -> None:
    answer = begin(talking()).ask("a")
    tokens = list(answer)
    assert tokens[-1].finish is FinishReason.LENGTH
    assert answer.shifts == 0
    assert answer.context_tokens == 64


def test_a_context_that_is_shifted() -> None:
    llama = talking()
    answer = begin(llama, system="sys", context_shift=True, max_tokens=100).ask("a")
    tokens = list(answer)
    assert len(tokens) == 100
    assert tokens[-1].finish is FinishReason.LENGTH
    completion = answer.completion()
    assert len(completion.tokens) == len(completion.logprobs) == 100
    assert completion.timings.generated_tokens == 100
    # BOS, "(sys)[" stay; of the other 57 tokens 28 go: 64 - 9, then 28 at a time.
    assert answer.shifts == 2
    first = llama.generate(answer.prompt, temperature=0).tokens
    assert completion.tokens[: len(first)] == first
    whole = [*answer.prompt, *first]
    second = llama.generate([*whole[:7], *whole[7 + 28 :]], temperature=0).tokens
    assert completion.tokens[len(first) : len(first) + len(second)] == second


def test_a_shift_keeps_characters_whole() -> None:
    # Two bytes a character.  The last of 65 tokens is the first half of one; 60 stand behind
    # "(s)[", of which 30 are dropped, so that the second half is what the model writes next.
    halves = {length: b"\xc3\xa9"[length % 2] for length in range(65)}
    llama = talking(halves, max_seq_len=65)
    answer = begin(llama, system="s", context_shift=True, max_tokens=80).ask("ab")
    assert "".join(token.text for token in answer) == "\xe9" * 40
    assert answer.shifts == 1


def test_seeds_go_on_over_a_shift() -> None:
    writing = {"temperature": 50.0, "top_k": 0, "seed": 2**64 - 1}
    texts = set()
    for _ in range(2):
        conversation = begin(talking(), writing=writing, context_shift=True, max_tokens=150)
        texts.add("".join(token.text for token in conversation.ask("a")))
    assert len(texts) == 1


def test_each_turn_needs_only_its_new_tokens() -> None:
    """What the model was given and wrote before is the beginning of its next prompt."""
    conversation = begin(talking(max_seq_len=1024), system="sys", max_tokens=20)
    before: list[int] = []
    for number in range(20):
        answer = conversation.ask(f"question {number}")
        list(answer)
        assert list(answer.prompt[: len(before)]) == before
        before = [*answer.prompt, *answer.completion().tokens]
