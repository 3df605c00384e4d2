"""Built programs stand beside the CPU's machine code; ``test_code_cache.py`` has the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama import code_cache
from pyrllama.opencl import program

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_folder_is_beside_the_cpus_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(code_cache.CACHE_VARIABLE, str(tmp_path))
    assert program.cache_folder() == tmp_path / "opencl"
