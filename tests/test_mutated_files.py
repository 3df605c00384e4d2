"""Files of every format, damaged in many ways, end in named errors or run.

``tests/fuzz/hunt.py`` goes on for as long as one likes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fuzz.hunt import ROOT, run_worker

if TYPE_CHECKING:
    from pathlib import Path

CASES = 1500


def test_damaged_files_do_no_harm(tmp_path: Path) -> None:
    """No other exception, no warning, no crash, no hang, and no memory beyond a bound."""
    problems, following = run_worker(tmp_path, 0, 0, CASES, float("inf"))
    assert problems == []
    assert following == CASES


@pytest.mark.skipif(sys.platform != "linux", reason="where the system can bound memory")
def test_the_bound_on_memory_holds() -> None:
    script = "from fuzz.worker import bound_memory; bound_memory(1 << 24); bytes(1 << 26)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert "MemoryError" in done.stderr
