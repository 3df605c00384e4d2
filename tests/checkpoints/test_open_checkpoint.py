from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support.gguf_writer import write_model
from support.llama2c_writer import write_llama2c
from support.tiny_models import random_weights, tiny_config
from support.transformers_models import FIXTURE_FOLDERS

from pyrllama.checkpoints import open_checkpoint
from pyrllama.errors import (
    CorruptFileError,
    ModelNotFoundError,
    SettingError,
    UnknownFormatError,
)

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = tiny_config()


def gguf(path: Path) -> Path:
    return write_model(path, CONFIG, random_weights(CONFIG))


def llama2c(path: Path, version: int = 0) -> Path:
    return write_llama2c(path, CONFIG, random_weights(CONFIG), version)


def test_a_name_tells_nothing(tmp_path: Path) -> None:
    with open_checkpoint(gguf(tmp_path / "model.bin")) as checkpoint:
        assert checkpoint.format == "GGUF 3"
    with open_checkpoint(llama2c(tmp_path / "model.gguf")) as checkpoint:
        assert checkpoint.format == "llama2.c, legacy"
    with open_checkpoint(str(llama2c(tmp_path / "model.pth", 1))) as checkpoint:
        assert checkpoint.format == "llama2.c 1"


def test_a_folder_with_one_gguf_file(tmp_path: Path) -> None:
    gguf(tmp_path / "weights")
    (tmp_path / "README.md").write_text("GGUF files", encoding="utf-8")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "weights"


def test_a_folder_with_several_gguf_files(tmp_path: Path) -> None:
    gguf(tmp_path / "b.gguf")
    gguf(tmp_path / "a.gguf")
    with pytest.raises(ModelNotFoundError, match=r"several GGUF files; name one of a.gguf, b.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("folder", FIXTURE_FOLDERS[:1], ids=lambda folder: folder.name)
def test_a_hugging_face_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    gguf(tmp_path / "model" / "converted.gguf")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.format.startswith("Hugging Face")
    with pytest.raises(SettingError, match="a Hugging Face checkpoint has its own"):
        open_checkpoint(tmp_path / "model", folder / "config.json")


def test_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"llama: there is no such file or folder"):
        open_checkpoint(tmp_path / "llama")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_names(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be looked at"):
        open_checkpoint(name)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no weights in this folder: .* found nothing"):
        open_checkpoint(tmp_path)
    for number in range(12):
        (tmp_path / f"note{number:02}").write_text("x", encoding="utf-8")
    with pytest.raises(
        ModelNotFoundError,
        match=r"consolidated.*config\.json.*GGUF.* found note00, .*, note07 and 4 more$",
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (b"Once upon a time", r"neither GGUF, llama2\.c .* starts with b'Once upo'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>", "a page of the web"),
        (b"tjgg\3\0\0\0", "a GGML file from before GGUF"),
        (b"\x80\x02\x8a\nl\xfc\x9cF", "a bare pickle"),
        (bytes(100), "starts with"),
    ],
)
def test_other_files(tmp_path: Path, stored: bytes, problem: str) -> None:
    path = tmp_path / "model"
    path.write_bytes(stored)
    with pytest.raises(UnknownFormatError, match=problem):
        open_checkpoint(path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(CorruptFileError, match="the file is empty"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelNotFoundError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe")
    gguf(tmp_path / "model")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "model"


def test_truncated_files(tmp_path: Path) -> None:
    path = gguf(tmp_path / "model")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptFileError, match=r"ends at byte \d+, but the file has \d+; .*trunc"):
        open_checkpoint(path)
    path = llama2c(tmp_path / "model", 1)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptFileError, match="it is truncated"):
        open_checkpoint(path)
    path = llama2c(tmp_path / "model")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnknownFormatError, match="must agree with the file's size"):
        open_checkpoint(path)


@pytest.mark.parametrize("write", [gguf, llama2c])
def test_parameters_of_a_file_that_has_its_own(tmp_path: Path, write: object) -> None:
    assert callable(write)
    with pytest.raises(SettingError, match=r"param_path is '.*params\.json', but it must be left"):
        open_checkpoint(write(tmp_path / "model"), tmp_path / "params.json")


def test_real_files(data: Path) -> None:
    models = data / "models"
    with open_checkpoint(models / "stories260K.bin") as checkpoint:
        assert checkpoint.format == "llama2.c, legacy"
    with open_checkpoint(models / "llama-2-tiny-random.gguf") as checkpoint:
        assert checkpoint.format == "GGUF 3"
    with open_checkpoint(models) as checkpoint:
        assert checkpoint.path == models / "llama-2-tiny-random.gguf"
    with open_checkpoint(models / "tiny-random-llama-hf") as checkpoint:
        assert checkpoint.format.startswith("Hugging Face")
    with pytest.raises(UnknownFormatError):
        open_checkpoint(models / "tok512.bin")
    with pytest.raises(ModelNotFoundError, match="a vocabulary but no tensors"):
        open_checkpoint(data / "vocab" / "ggml-vocab-llama-bpe.gguf")
    with pytest.raises(ModelNotFoundError, match="a vocabulary but no tensors"):
        open_checkpoint(data / "vocab" / "ggml-vocab-qwen2.gguf")
