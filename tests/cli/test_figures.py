"""Sizes, memory and the line of figures."""

from __future__ import annotations

import sys

import pytest

from pyrllama.cli import figures
from pyrllama.core import Completion, FinishReason, Timings


def completion(generated: int) -> Completion:
    """Return a completion of 20 prompt tokens in 0.1 s and 4 ms for every further token."""
    timings = Timings(20, 0.1, generated, 0.004 * (generated - 1))
    return Completion("", (), (), (), FinishReason.LENGTH, timings, seed=7)


def test_the_line_of_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "peak_memory", lambda: 45_600_000)
    assert figures.figures_line(completion(11), 8_000_000) == (
        "prompt 20 tokens, 200.0 tokens/s | 4.00 ms/token, 250.0 tokens/s | 2.00 GB/s | "
        "45.6 MB memory | seed 7"
    )


def test_a_single_token_has_no_decode_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "peak_memory", lambda: None)
    line = figures.figures_line(completion(1), 8_000_000)
    assert line == "prompt 20 tokens, 200.0 tokens/s | seed 7"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_sees_what_was_touched() -> None:
    figures.reset_peak_memory()
    before = figures.peak_memory()
    block = bytearray(64_000_000)
    after = figures.peak_memory()
    assert before is not None
    assert after is not None
    assert after - before > 0.9 * len(block) or sys.platform == "darwin"


def test_versions() -> None:
    assert list(figures.versions()) == ["pyrllama", "python", "numpy", "numba", "llvmlite"]
