"""Saved conversations: written whole, read back, and named where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyrllama.chat.files import load_messages, save_messages
from pyrllama.errors import ConversationFileError

MESSAGES = [{"role": "user", "content": "é\ud800"}, {"role": "assistant", "content": "b"}]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save_messages(path, MESSAGES[1:])
    save_messages(path, MESSAGES)
    assert load_messages(path) == [{"role": "user", "content": "é\\ud800"}, MESSAGES[1]] or (
        load_messages(path) == MESSAGES
    )
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine", "utf-8")
    with pytest.raises(ConversationFileError, match=r"notes\.txt: is not JSON"):
        save_messages(path, MESSAGES)
    assert path.read_text("utf-8") == "mine"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConversationFileError, match="cannot be written: No such file or directory"):
        save_messages(tmp_path / "no" / "talk.json", MESSAGES)
    with pytest.raises(ConversationFileError, match="cannot be read: No such file or directory"):
        load_messages(tmp_path / "talk.json")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.json"
    save_messages(path, MESSAGES[1:])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConversationFileError, match="cannot be written: No space left on device"):
        save_messages(path, MESSAGES)
    assert load_messages(path) == MESSAGES[1:]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "is no saved conversation"),
        ({"format": "other"}, "is no saved conversation"),
        ({"format": "rllama conversation", "version": 2}, "has version 2, but only 1 is known"),
        ({"format": "rllama conversation", "version": 1, "messages": [{"role": "x"}]},
         "message 0 has the role 'x'"),
        ({"format": "rllama conversation", "version": 1, "messages": 5}, "must be a list of"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ConversationFileError, match=said):
        load_messages(path)
