"""How answers are shown: laid out at a terminal, as they are elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pyrllama.cli.chat_view import MarkdownView, PlainView, finished_end

ANSWER = "# Title\n\nOne *two*\nthree\n\n- a\n- b\n\n```python\nx = 1\n\ny = 2\n```\n\n\x1b[31mend"


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=40, color_system=None)


def shown(terminal: Console) -> str:
    file = terminal.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_markdown_is_laid_out_however_it_comes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrllama.cli.chat_view.REFRESH_SECONDS", 1e9)  # draw what is final alone
    target = Console(file=io.StringIO(), width=40, color_system=None)
    with MarkdownView(target) as view:
        for at in range(0, len(ANSWER), size):
            view.show(ANSWER[at : at + size])
    lines = [line.rstrip() for line in shown(target).splitlines()]
    for line in ("One two", "three", " • a", " • b", " x = 1", " y = 2", "�[31mend"):
        assert line in lines
    assert any("Title" in line for line in lines)
    assert "\x1b[31m" not in shown(target)


def test_what_is_being_written_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrllama.cli.chat_view.REFRESH_SECONDS", 0.0)
    target = console(terminal=True)
    with MarkdownView(target) as view:
        view.show("*on")
        view.show("e*")
    assert "\x1b[2K" in shown(target)
    assert shown(target).rstrip().endswith("one")


def test_plain_text_stays_as_it_is() -> None:
    target = console(terminal=False)
    with PlainView(target) as view:
        for piece in (" ", " a", " \n", "*b*"):
            view.show(piece)
    assert shown(target) == "a \n*b*\n"


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("a", ""),
        ("a\n", ""),
        ("a\n\n", "a\n\n"),
        ("a\n\nb", "a\n\n"),
        ("a\n\nb\n\nc\n", "a\n\nb\n\n"),
        ("\n\n", ""),
        ("```\na\n\nb", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("a\n\n~~~\n\n", "a\n\n"),
        ("a\n ", ""),
    ],
)
def test_what_of_an_answer_is_drawn_for_good(text: str, finished: str) -> None:
    assert text[: finished_end(text)] == finished
