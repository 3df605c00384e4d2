"""Machine code on disk: read back whole, and never from where others can write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyrllama import code_cache


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "opencl" / "program.bin"
    code_cache.write(file, b"binary")
    return file


def test_what_is_kept_is_read_back(file: Path) -> None:
    assert code_cache.read(file) == b"binary"
    assert [entry.name for entry in file.parent.iterdir()] == ["program.bin"]


def test_there_is_none(tmp_path: Path) -> None:
    assert code_cache.read(tmp_path / "nothing" / "program.bin") is None
    assert code_cache.read(tmp_path / "program.bin") is None


@pytest.mark.parametrize("length", [0, 10, 32, 37])
def test_damage_is_passed_over(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    assert code_cache.read(file) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_passed_over(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    assert code_cache.read(file) is None


def test_the_cache_folder_is_the_users_or_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(code_cache.CACHE_VARIABLE, "/some/where")
    assert code_cache.folder() == Path("/some/where")
    monkeypatch.delenv(code_cache.CACHE_VARIABLE)
    default = code_cache.folder()
    assert "pyrllama" in default.parts
    monkeypatch.setenv(code_cache.CACHE_VARIABLE, "")
    assert code_cache.folder() == default
