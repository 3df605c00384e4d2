"""Fixtures for the tests of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.cli import Outcome, Run

from pyrllama.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the reference, and as if nothing were a terminal."""
    monkeypatch.setenv("RLLAMA_BACKEND", "reference")
    for name in ("RLLAMA_DEBUG", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command and captures what it prints."""

    def call(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture
def stories(data: Path) -> Path:
    """Return a trained model of 260K parameters."""
    return data / "models" / "stories260K.bin"


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch, stories: Path) -> Path:
    """Let a small trained model be the one that comes with the package."""
    monkeypatch.setattr("pyrllama.data.default_model_path", lambda: stories)
    return stories
