"""Files of every format, damaged in many ways, end in named errors or run.

``tests/fuzz/hunt.py`` goes on for as long as one likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.hunt import run_worker

if TYPE_CHECKING:
    from pathlib import Path

CASES = 1500


def test_damaged_files_do_no_harm(tmp_path: Path) -> None:
    """No other exception, no warning, no crash, no hang, and no memory beyond a bound."""
    problems, following = run_worker(tmp_path, 0, 0, CASES, float("inf"))
    assert problems == []
    assert following == CASES
