"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# A shell makes what it runs in the background ignore Ctrl-C, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that compile the same code in one process: a file's, and all of CPU kernels."""
    for item in items:
        group = "kernels" if item.path.parent.name == "cpu" else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real test material, which is not part of the project."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RLLAMA_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test material at {folder}; set RLLAMA_TEST_DATA")
    return folder
