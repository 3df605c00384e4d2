"""What is typed: messages over several lines, and where the history is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyrllama.cli.chat_input import LineReader, is_finished, joined

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("typed", "finished"),
    [
        ("a", True),
        ("a\\", False),
        ('"""a', False),
        ('"""a\nb"""', True),
        ("a\\\nb", True),
        ("", True),
    ],
)
def test_when_enter_ends_a_message(typed: str, finished: bool) -> None:
    assert is_finished(typed) is finished


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("a", "a"),
        ("a\\\nb", "a\nb"),
        ('"""a\nb"""', "a\nb"),
        ('"""\na\n b\n"""', "a\n b"),
        ('say """a""" now', 'say """a""" now'),
        ('"""', '"""'),
        ('"""""', '"""""'),
        ("C:\\dir", "C:\\dir"),
    ],
)
def test_what_is_sent(typed: str, message: str) -> None:
    assert joined(typed) == message


def test_lines_of_a_pipe() -> None:
    reader = LineReader(["a\n", "b"])
    assert [reader.read(), reader.read("draft"), reader.read()] == ["a", "b", None]


def test_history_that_cannot_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prompt_toolkit.history import InMemoryHistory  # noqa: PLC0415

    from pyrllama.cli.chat_input import _history  # noqa: PLC0415

    (tmp_path / "file").touch()
    kept = _history(tmp_path / "file" / "history")
    assert isinstance(kept, InMemoryHistory)
    assert "what you type is not kept: " in capsys.readouterr().err


def test_history_is_private(tmp_path: Path) -> None:
    from pyrllama.cli.chat_input import _history  # noqa: PLC0415

    path = tmp_path / "folder" / "history"
    history = _history(path)
    history.store_string("secret")
    assert path.stat().st_mode & 0o077 == 0
    assert "secret" in path.read_text("utf-8")
    path.unlink()
    path.mkdir()
    history.store_string("lost")  # as on a full disk
