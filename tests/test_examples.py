"""Every example runs, and prints what it says that it prints."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DEFAULT_MODEL = ROOT / "pyrllama" / "data" / "stories.gguf"


@pytest.fixture
def arguments(request: pytest.FixtureRequest) -> list[str]:
    """Return no argument, or the path of another model where the package has none yet."""
    if DEFAULT_MODEL.is_file():
        return []
    data: Path = request.getfixturevalue("data")
    return [str(data / "models" / "stories260K.bin")]


def run(
    name: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """Run an example as Python runs a file, and return what it prints."""
    path = str(ROOT / "examples" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(path, run_name="__main__")
    return capsys.readouterr().out


def test_there_are_no_others() -> None:
    names = [path.stem for path in EXAMPLES]
    assert names == ["generate", "logprobs", "own_sampler", "stream"]


def test_generate(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("generate", arguments, monkeypatch, capsys)
    story, figures = printed.strip().rsplit("\n\n", 1)
    assert story.startswith("Once upon a time")
    assert len(story) > 100
    assert re.match(r"\d+ tokens, ended by (stop|length), seed 1\nprompt \d+ tokens/s", figures)
    again = run("generate", arguments, monkeypatch, capsys)
    assert again.startswith(story), "the seed is to reproduce the text"


def test_stream(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("stream", arguments, monkeypatch, capsys)
    assert printed.startswith("One day, a little girl named Lily")
    assert len(printed) > 60


def test_logprobs(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    *rows, total = run("logprobs", arguments, monkeypatch, capsys).splitlines()
    scores = [float(row.split()[0]) for row in rows]
    pieces = [row.split("  ", 2)[-1] for row in rows]
    assert len(rows) > 5
    assert all(score <= 0 for score in scores)
    assert pieces[-1] == "'.'"
    bits_per_byte = float(total.rpartition(" ")[2])
    assert 0 < bits_per_byte < 2, "a story in plain English is what the model was trained on"


def test_own_sampler(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("own_sampler", arguments, monkeypatch, capsys)
    assert printed.startswith("Tom and his dog went to the park.")
    assert len(printed) > 60
