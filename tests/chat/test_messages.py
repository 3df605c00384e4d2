"""Messages and tools: what is taken, and how what is wrong is named."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from pyrllama.chat.messages import checked_messages, checked_tools
from pyrllama.errors import MessageError


class Word(str):
    """A text with a method that no template may have."""

    __slots__ = ()

    def explode(self) -> None:
        """Do what a text does not."""


class Colour(enum.StrEnum):
    RED = "red"


def test_values_become_plain() -> None:
    message = {
        "role": Word("user"),
        "content": Word("a"),
        "n": (1, True, None, 0.5),
        "c": Colour.RED,
    }
    (plain,) = checked_messages((message,))
    assert plain == {"role": "user", "content": "a", "n": [1, True, None, 0.5], "c": "red"}
    assert {type(plain["content"]), type(plain["role"]), type(plain["c"])} == {str}


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert checked_messages([{"role": "user", "content": parts}])[0]["content"] == "a\nb"


@pytest.mark.parametrize(
    ("arguments", "expected"), [('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("", {})]
)
def test_arguments_of_calls_are_objects(arguments: Any, expected: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (plain,) = checked_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert plain["content"] == ""
    assert plain["tool_calls"][0]["function"]["arguments"] == expected


DEEP: Any = []
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "must be a list of one message or more"),
        ("Hello", "must be a list of one message or more"),
        (["Hello"], "message 0 is 'Hello', but must have a role"),
        ([{"role": "user", "content": "a"}, {"content": "a"}], "message 1 has the role None"),
        ([{"role": "narrator", "content": "a"}], "has the role 'narrator'; the roles are system, "),
        ([{"role": "user"}], "message 0 has no content that is a text, but None"),
        ([{"role": "user", "content": 5}], "no content that is a text, but 5"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "has a part that is no text"),
        ([{"role": "user", "content": "a", "x": object()}], "holds a object, which JSON has not"),
        ([{"role": "user", "content": "a", "x": DEEP}], "nested more than 32 deep"),
        ([{"role": "assistant", "content": "", "tool_calls": "f"}], "tool_calls that are no list"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "without a function's name"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
         "arguments are no JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(messages: Any, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        checked_messages(messages)


def test_tools() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert checked_tools((tool,)) == [tool]
    assert checked_tools(None) is None
    assert checked_tools([]) is None
    for wrong, said in (("f", "must be a list"), (["f"], "tool 0 must be"), ([tool, 1], "tool 1")):
        with pytest.raises(MessageError, match=said):
            checked_tools(wrong)  # type: ignore[arg-type]
