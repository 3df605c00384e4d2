"""``rllama chat`` and ``--start-interactive`` at a terminal, through a pseudo-terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pty", reason="needs pseudo-terminals")

from support.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, UP, Terminal

import pyrllama

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(pyrllama.__file__).parents[1]
DOG = "Tell me a story about a dog and a red ball."
STORY = "Once upon a time, there was a dog. The dog"


def terminal(*arguments: str | Path) -> Terminal:
    """Run the command at a terminal, with the packaged model on the reference."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLLAMA_BACKEND": "reference"}
    return Terminal([sys.executable, "-m", "pyrllama", *map(str, arguments)], environment)


class Talk:
    """A conversation at a terminal, prompt by prompt."""

    def __init__(self, shown: Terminal) -> None:
        self.terminal = shown
        self._prompts = 0
        self.wait()

    def wait(self) -> str:
        """Wait for the next prompt and return what came before it."""
        self._prompts += 1
        self.terminal.wait_for("\n>>>", self._prompts)
        return self.terminal.text.split("\n>>>")[self._prompts - 1].partition("\n")[2]

    def say(self, line: str) -> str:
        """Type a line and return what is shown until the next prompt."""
        self.terminal.type(line + ENTER)
        return self.wait()


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    """Begin a conversation of short greedy answers."""
    options = ("--temperature", "0", "--max-tokens", "12", "-q", "--history", tmp_path / "typed")
    with terminal("chat", *options) as shown:
        yield Talk(shown)


def test_an_answer_and_its_figures(talk: Talk) -> None:
    assert talk.say(DOG) == STORY
    figures = talk.say("/stats").splitlines()
    assert figures[0] == "context 28 of 512 tokens, 1 turn"
    assert figures[1].startswith("prompt 16 tokens, ")
    talk.terminal.wait_for("context 28 of 512 tokens | temperature 0 | /help")
    talk.terminal.type(CTRL_D)
    assert talk.terminal.end() == 0


def test_every_command(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    assert talk.say("/stats") == "context 0 of 512 tokens, 0 turns\nno answer yet"
    assert talk.say("/retry") == "error: there is nothing yet to answer again"
    assert talk.say("/system") == "system prompt: none"
    assert talk.say("/system Be kind.") == "system prompt: Be kind."
    assert talk.say(DOG) == STORY
    assert talk.say("/set temperature 0.7") == "temperature 0.7"
    assert talk.say("/set seed 4") == "seed 4"
    retried = talk.say("/retry")
    assert retried.startswith("Once")
    assert talk.say("/set temperature hot") == (
        "error: temperature is 'hot', but it must be a number"
    )
    assert talk.say("/set temperature 0") == "temperature 0"
    assert talk.say("/edit " + DOG) == STORY
    assert talk.say(f"/save {path}") == f"saved 3 messages to {path}"
    saved = json.loads(path.read_bytes())["messages"]
    assert saved == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": DOG},
        {"role": "assistant", "content": STORY},
    ]
    assert talk.say("/undo") == f"taken back: {DOG}"
    assert talk.say("/clear") == "a new conversation; the system prompt stays"
    assert talk.say(f"/load {path}") == f"loaded 3 messages from {path}"
    assert talk.say("/system off") == "system prompt: none"
    assert talk.say("/save") == f"saved 2 messages to {path}"
    assert talk.say("/load nothing") == "error: nothing: cannot be read: No such file or directory"
    assert "did you mean /retry? /help lists them" in talk.say("/rety")
    for name in (
        "/help",
        "/system",
        "/retry",
        "/undo",
        "/edit",
        "/save",
        "/load",
        "/set",
        "/stats",
    ):
        assert name in talk.say("/help")
    talk.terminal.type("/quit" + ENTER)
    assert talk.terminal.end() == 0


def test_the_last_message_can_be_edited(talk: Talk) -> None:
    talk.say("Tell me a story about a cat.")
    talk.terminal.type("/edit" + ENTER)
    talk.terminal.wait_for(">>> Tell me a story about a cat.", 2)
    talk.terminal.type("\x7f" * len("cat.") + "dog and a red ball." + ENTER)
    talk.wait()
    assert talk.wait() == STORY
    assert talk.say("/stats").startswith("context 28 of 512 tokens, 1 turn")


def test_messages_over_several_lines(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk.say("/set max_tokens 1")
    talk.say('"""one' + ENTER + 'two"""')
    talk.say("three\\" + ENTER + "four")
    talk.say("five" + ALT_ENTER + "six")
    talk.say("\x1b[200~seven\neight\x1b[201~")
    talk.say(f"/save {path}")
    messages = json.loads(path.read_bytes())["messages"]
    asked = [message["content"] for message in messages if message["role"] == "user"]
    assert asked == ["one\ntwo", "three\nfour", "five\nsix", "seven\neight"]


def test_ctrl_c_stops_an_answer_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with terminal("chat", "--temperature", "0", "--no-history") as shown:
        talk = Talk(shown)
        shown.type(DOG + ENTER)
        shown.wait_for("Once upon")
        shown.type(CTRL_C)
        assert "stopped; what has come so far is kept" in talk.wait()
        talk.say(f"/save {path}")
        kept = json.loads(path.read_bytes())["messages"][1]["content"]
        assert kept.startswith("Once upon")
        assert " ".join(kept.split())[:60] in " ".join(shown.text.split())
        shown.type("half a line" + CTRL_C)
        talk.wait()
        assert talk.say("/stats").startswith("context ")
        shown.type(CTRL_D)
        assert shown.end() == 0


def test_history_is_kept_from_one_conversation_to_the_next(talk: Talk, tmp_path: Path) -> None:
    talk.say("/system Be kind.")
    talk.terminal.type(CTRL_D)
    talk.terminal.end()
    with terminal("chat", "-q", "--history", tmp_path / "typed") as shown:
        again = Talk(shown)
        shown.type(UP)
        shown.wait_for(">>> /system Be kind.")
        assert again.say("") == "system prompt: Be kind."


def test_a_context_that_is_full() -> None:
    options = ("--max-seq-len", "40", "--max-tokens", "4", "--temperature", "0", "--no-history")
    with terminal("chat", *options) as shown:
        talk = Talk(shown)
        for _ in range(2):
            assert "dropped" not in talk.say(DOG)
        told = talk.say(DOG)
        assert "the context is full: the 2 oldest turns were dropped" in told
        shown.wait_for("tokens | 2 turns dropped | temperature 0")


def test_the_originals_interactive_mode() -> None:
    options = ("--max-tokens", "4", "--temperature", "0", "-q")
    with terminal("--start-interactive", *options) as shown:
        talk = Talk(shown)
        talk.say("Who are you?")
        talk.say("/stats")
        shown.type(CTRL_D)
        assert shown.end() == 0
