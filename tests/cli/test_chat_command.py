"""``rllama chat`` without a person: pipes, one message, JSON, and what is wrong."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from pyrllama.chat.files import save_messages

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run

DOG = "Tell me a story about a dog and a red ball."
GREEDY = ("--temperature", "0", "--max-tokens", "12")
STORY = "Once upon a time, there was a dog. The dog\n"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipe a message in."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(DOG.encode() + b"\n")))


@pytest.mark.usefixtures("typed")
def test_a_message_through_a_pipe_gives_the_answer_alone(run: Run) -> None:
    done = run("chat", *GREEDY, "-q")
    assert (done.status, done.out, done.err) == (0, STORY, "")


def test_a_message_as_an_option(run: Run) -> None:
    done = run("chat", "--prompt", DOG, *GREEDY)
    assert (done.status, done.out) == (0, STORY)
    assert done.err == "the answer ends here as --max-tokens says\n"


@pytest.mark.usefixtures("typed")
def test_json(run: Run) -> None:
    done = run("chat", *GREEDY, "--json", "--system", "Be kind.")
    report = json.loads(done.out)
    assert report["text"] == STORY.strip()
    assert report["finish"] == "length"
    assert len(report["tokens"]) == 12
    assert [message["role"] for message in report["messages"]] == ["system", "user", "assistant"]
    assert report["template"].endswith("stories.gguf: tokenizer.chat_template")
    assert report["prompt_tokens"][:2] == [1, 3]
    assert done.err == ""


def test_tokens_are_listed(run: Run) -> None:
    done = run(
        "chat", "--prompt", "</s> Hi", "--temperature", "0", "--max-tokens", "2", "--show-tokens"
    )
    prompt, answer, _ = done.err.splitlines()
    assert prompt.startswith("prompt, 10 tokens: 1 '<s>', 3 '<|user|>', ")
    assert prompt.endswith(", 4 '<|assistant|>'")
    assert "2 '</s>'" not in prompt
    assert answer.startswith("answer, 2 tokens: ")


def test_a_conversation_goes_on(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save_messages(
        path, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    )
    done = run("chat", "--load", path, "--prompt", DOG, *GREEDY, "--json")
    contents = [message["content"] for message in json.loads(done.out)["messages"]]
    assert contents[:3] == ["Hi", "Yes", DOG]


def test_a_stop_text_and_a_plain_form(run: Run, stories: Path) -> None:
    options = ("--model-path", stories, "--temperature", "0", "--max-tokens", "30")
    done = run("chat", *options, "--chat-template", "vicuna", "--prompt", "Hi", "--json")
    assert json.loads(done.out)["template"] == "the plain form vicuna"
    whole = json.loads(done.out)["text"]
    stop = whole[10:14]
    cut = run("chat", *options, "--chat-template", "vicuna", "--prompt", "Hi", "--stop", stop)
    assert cut.out == whole[: whole.index(stop)] + "\n"


def test_a_template_of_ones_own(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{{ bos_token }}{{ greeting }}{{ messages[0].content }}", "utf-8")
    options = ("--chat-template", path, "--template-argument", "greeting=Once ", "--show-tokens")
    done = run("chat", *options, "--prompt", "upon", "--max-tokens", "1")
    assert done.err.startswith("prompt, 3 tokens: 1 '<s>', 506 ' Once', 522 ' upon'\n")
    number = run("chat", *options[:2], "--template-argument", "greeting=5", "--prompt", "x",
                 "--max-tokens", "1", "--show-tokens")  # fmt: skip
    assert "'5'" in number.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--chat-template", "none"), "none: the chat template is not there: it is no file"),
        (("--template-argument", "x"), "'x' is not NAME=VALUE"),
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--load", "nothing.json"), "nothing.json: cannot be read: No such file"),
        (("--prompt", " "), "there is no message; give one with --prompt or through a pipe"),
    ],
)
def test_what_is_wrong(run: Run, options: tuple[str, ...], said: str) -> None:
    done = run("chat", "--prompt", "x", *options)
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert said in done.err


def test_a_base_model_is_told_of_plain_forms(run: Run, stories: Path) -> None:
    done = run("chat", "--model-path", stories, "--prompt", "x")
    assert done.status == 2
    assert "stories260K.bin: the chat template is not there, as with a base model" in done.err
    assert "--chat-template alpaca|vicuna|chatml" in done.err


def test_a_broken_template_is_named_before_anything_is_typed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("a\n{% if %}", "utf-8")
    done = run("chat", "--chat-template", path, "--prompt", "x")
    assert done.status == 2
    assert f"error: {path}, line 2: the chat template is no Jinja template" in done.err


def test_ctrl_c_keeps_what_came(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyrllama.chat.answer import Answer  # noqa: PLC0415

    given: list[str] = []
    advance = Answer.__next__

    def interrupted(answer: Answer) -> object:
        if len(given) == 5:
            given.append("interrupted")
            raise KeyboardInterrupt
        token = advance(answer)
        given.append(token.text)
        return token

    monkeypatch.setattr(Answer, "__next__", interrupted)
    done = run("chat", "--prompt", DOG, *GREEDY)
    assert done.status == 130
    assert done.out == "Once upon a time,\n"
    assert done.err == "stopped; what has come so far is kept\n"
