from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.errors import CorruptFileError, ModelNotFoundError


@pytest.fixture
def file(tmp_path: Path) -> MappedFile:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    return MappedFile(path)


def test_views_are_the_bytes_and_cannot_be_written(file: MappedFile) -> None:
    view = file.view(10, 4)
    assert view.tolist() == [10, 11, 12, 13]
    assert view.dtype == np.uint8
    assert not view.flags.writeable
    assert np.shares_memory(view, file.view(0, file.size))
    assert file.view(file.size, 0).size == 0
    assert file.size == 25600


@pytest.mark.parametrize(
    ("offset", "length"), [(25599, 2), (25601, 0), (-1, 1), (0, -1), (1 << 70, 1), (0, 1 << 70)]
)
def test_bytes_outside_are_an_error_that_names_the_offset(
    file: MappedFile, offset: int, length: int
) -> None:
    with pytest.raises(CorruptFileError, match=rf"{length} bytes .* offset {offset}, .* 25600"):
        file.view(offset, length)
    with pytest.raises(CorruptFileError):
        file.release(offset, length)


@pytest.mark.parametrize(("offset", "length"), [(0, 25600), (1, 25599), (5000, 9000), (7, 3)])
def test_released_bytes_can_be_read_again(file: MappedFile, offset: int, length: int) -> None:
    view = file.view(0, file.size)
    file.release(offset, length)
    assert view.tobytes() == bytes(range(256)) * 100


def test_views_outlive_the_file(file: MappedFile) -> None:
    view = file.view(0, 3)
    file.close()
    file.close()
    file.release(0, file.size)
    assert view.tolist() == [0, 1, 2]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nothing: there is no such file"):
        MappedFile(tmp_path / "nothing")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="this is a folder"):
        MappedFile(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(CorruptFileError, match="the file is empty"):
        MappedFile(tmp_path / "empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelNotFoundError, match="not a regular file"):
        MappedFile(tmp_path / "pipe")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read all
    with pytest.raises(ModelNotFoundError, match="no permission"):
        MappedFile(tmp_path / "secret")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_names(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be opened"):
        MappedFile(Path(name))
