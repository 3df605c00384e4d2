"""The commands of RLLaMA's README of March 2023 on a folder as Meta published it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.torch_writer import write_meta_folder

from pyrllama.checkpoints import open_checkpoint
from pyrllama.models.llama import OUTPUT
from pyrllama.reference.model import load_weights

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run


@pytest.fixture(params=["zip", "unzipped"])
def folder(request: pytest.FixtureRequest, stories: Path, tmp_path: Path) -> Path:
    """Return ``LLaMA/7B``, beside whose parent lies ``LLaMA/tokenizer.model``."""
    folder = tmp_path / "LLaMA" / "7B"
    folder.mkdir(parents=True)
    with open_checkpoint(stories) as checkpoint:
        weights = load_weights(checkpoint)
        weights[OUTPUT] = weights["token_embd.weight"].copy()  # LLaMA's own is never tied
        write_meta_folder(folder, checkpoint.config, weights, unzipped=request.param == "unzipped")
    tokenizer = stories.with_name("tok512.model").read_bytes()
    folder.with_name("tokenizer.model").write_bytes(tokenizer)
    return folder


def test_the_meaning_of_life(run: Run, folder: Path) -> None:
    done = run(
        "--tokenizer-path", folder.parent / "tokenizer.model", "--model-path", folder,
        "--param-path", folder / "params.json", "--f16", "--prompt", "The meaning of life is",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.out.startswith("The meaning of life is")
    assert len(done.out) > 100


def test_computers_are_pretty_complica(run: Run, folder: Path) -> None:
    done = run(
        "--model-path", folder, "--param-path", folder / "params.json", "--tokenizer-path",
        folder.parent / "tokenizer.model", "--prompt", "Computers are pretty complica",
        "--max-seq-len", "50", "--json",
    )  # fmt: skip
    report = json.loads(done.out)
    assert len(report["prompt_tokens"]) + len(report["tokens"]) == 50
    assert report["finish"] == "length"


def test_the_same_text_as_the_model_it_was_made_from(run: Run, folder: Path, stories: Path) -> None:
    settings = ("--prompt", "", "--temperature", "0", "--max-tokens", "60", "-q")
    assert run("--model-path", folder, *settings).out == (
        run("--model-path", stories, *settings).out
    )
