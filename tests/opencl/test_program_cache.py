"""Built programs on disk: read back whole, and never from where others can write."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pyrllama.opencl import program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "opencl" / "program.bin"
    program._write(file, b"binary")
    return file


def test_what_is_kept_is_read_back(file: Path) -> None:
    assert program._read(file) == b"binary"
    assert [entry.name for entry in file.parent.iterdir()] == ["program.bin"]


def test_there_is_none(tmp_path: Path) -> None:
    assert program._read(tmp_path / "nothing" / "program.bin") is None
    assert program._read(tmp_path / "program.bin") is None


@pytest.mark.parametrize("length", [0, 10, 32, 37])
def test_damage_is_passed_over(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    assert program._read(file) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_passed_over(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    assert program._read(file) is None


def test_the_folder_is_beside_the_cpus_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(program.CACHE_VARIABLE, str(tmp_path))
    assert program.cache_folder() == tmp_path / "opencl"
