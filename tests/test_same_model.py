"""One trained model in every form that is read: the same ids, and the author's expected text."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from support.gguf_writer import write_model
from support.hf_writer import write_hf_folder
from support.llama2c_writer import write_llama2c
from support.tiny_models import GOLDEN
from support.torch_writer import write_meta_folder

import pyrllama
from pyrllama.checkpoints.llama2c import Llama2cCheckpoint
from pyrllama.cpu import target
from pyrllama.reference import load_weights

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

TOKENS = 200
"""Generated from BOS alone, as llama2.c's own test does."""


@pytest.fixture(scope="module")
def stories(data: Path) -> tuple[ModelConfig, dict[str, NDArray[np.float32]]]:
    """Return stories260K as arrays; its output projection is the embedding."""
    with Llama2cCheckpoint(data / "models" / "stories260K.bin") as checkpoint:
        return checkpoint.config, dict(load_weights(checkpoint))


def generate(path: Path, tokenizer: Path | None, **options: object) -> pyrllama.Completion:
    with pyrllama.load(path, tokenizer_path=tokenizer, **options) as llama:  # type: ignore[arg-type]
        return llama.generate("", temperature=0, max_tokens=TOKENS)


def expected_text() -> str:
    return (GOLDEN / "stories260K.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", [isa.name for isa in target.supported()])
def test_the_authors_text_on_every_instruction_set(
    data: Path, isa: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(target.ISA_VARIABLE, isa)
    models = data / "models"
    completion = generate(models / "stories260K.bin", models / "tok512.model", threads=threads)
    assert completion.text == expected_text()


@pytest.mark.parametrize("form", ["gguf", "safetensors", "bin", "meta", "meta-2", "llama2c-1"])
def test_every_form_gives_the_same_ids(
    form: str,
    data: Path,
    tmp_path: Path,
    stories: tuple[ModelConfig, dict[str, NDArray[np.float32]]],
) -> None:
    config, weights = stories
    tokenizer = data / "models" / "tok512.model"
    path = tmp_path / "model"
    if form == "gguf":
        write_model(path, config, weights)
    elif form.startswith("meta"):
        write_meta_folder(path, config, weights, shards=2 if form == "meta-2" else 1)
    elif form == "llama2c-1":
        write_llama2c(path, config, weights, version=1)
    else:
        write_hf_folder(path, config, weights, form=form)  # type: ignore[arg-type]
    if path.is_dir():
        shutil.copy(tokenizer, path / "tokenizer.model")
    found_by_itself = path.is_dir()
    assert generate(path, None if found_by_itself else tokenizer).text == expected_text()
