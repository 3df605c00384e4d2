"""``rllama imatrix``: the file, the line, the JSON, the bar, and bad input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

from pyrllama.convert import export_gguf
from pyrllama.importance import read_importance
from pyrllama.model_config import Experts
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Outcome, Run

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside. "
SMALL = ("--context", "32", "--chunks", "3")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Return a file with a text of some hundred tokens."""
    path = tmp_path / "text.txt"
    path.write_text(STORY * 10, encoding="utf-8")
    return path


@pytest.fixture
def collect(run: Run, stories: Path, text: Path, tmp_path: Path) -> Run:
    """Return the command with a model, a text and a file to write, ``i.gguf``."""

    def call(*arguments: str | Path) -> Outcome:
        given = ("--model-path", stories, "--text", text, "-o", tmp_path / "i.gguf")
        return run("imatrix", *given, *SMALL, *arguments)

    return call


def test_it_writes_what_quantize_takes(
    run: Run, collect: Run, stories: Path, tmp_path: Path
) -> None:
    done = collect()
    path = tmp_path / "i.gguf"
    assert done.status == 0
    assert done.out.startswith(f"{path}: importance of 35 matrices from 3 chunks of 32 tokens, ")
    assert done.err.startswith("the model needs ")
    read = read_importance(path)
    assert (read.datasets, read.chunks) == (("text.txt",), 3)
    assert set(read.columns) >= {f"blk.{i}.ffn_down.weight" for i in range(5)}
    target = tmp_path / "q.gguf"
    report = json.loads(
        run("quantize", stories, target, "--type", "Q4_0", "--imatrix", path, "--json").out
    )
    weighed = {tensor["name"] for tensor in report["tensors"] if tensor["importance"]}
    assert weighed == set(read.columns)


@pytest.fixture
def mixture(data: Path, tmp_path: Path) -> Path:
    """Return a random model with so many experts that few tokens do not reach all of them."""
    config = tiny_config(vocab_size=512, experts=Experts(60, 2))
    path = tmp_path / "mixture.gguf"
    checkpoint = MemoryCheckpoint(config, random_weights(config))
    export_gguf(checkpoint, data / "models" / "tok512.model", path, TensorType.F32)
    return path


def test_experts_are_collected_and_used(run: Run, collect: Run, mixture: Path) -> None:
    done = collect("--model-path", mixture)
    path = mixture.with_name("i.gguf")
    assert done.out.startswith(f"{path}: importance of 16 matrices from 3 chunks of 32 tokens, ")
    idle = json.loads(collect("--model-path", mixture, "--json").out)["idle_expert_matrices"]
    assert 0 < idle < 360
    assert f"{idle} of 360 matrices of experts met no token: all their columns" in done.err
    target = mixture.with_name("q.gguf")
    done = run("quantize", mixture, target, "--type", "Q4_0", "--imatrix", path, "--json")
    weighed = {tensor["name"] for tensor in json.loads(done.out)["tensors"] if tensor["importance"]}
    assert weighed == set(read_importance(path).columns)
    assert "blk.1.ffn_down_exps.weight" in weighed


def test_json(collect: Run, tmp_path: Path, text: Path) -> None:
    done = collect("--json", "--max-threads", "2")
    assert done.err == ""
    report = json.loads(done.out)
    assert report["output"] == str(tmp_path / "i.gguf")
    assert report["text"] == str(text)
    assert (report["context"], report["chunks"], report["tokens"]) == (32, 3, 96)
    assert (report["matrices"], report["idle_expert_matrices"]) == (35, 0)
    assert report["seconds"] > 0
    assert (report["backend"], report["threads"]) == ("reference", 2)
    assert "numpy" in report["versions"]


def test_quiet_prints_nothing(collect: Run) -> None:
    done = collect("-q")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_the_output_is_collected_where_it_is_asked_for(collect: Run, tmp_path: Path) -> None:
    collect("-q")
    plain = read_importance(tmp_path / "i.gguf").columns
    collect("-q", "--process-output")
    whole = read_importance(tmp_path / "i.gguf").columns
    assert set(whole) - set(plain) <= {OUTPUT, TOKEN_EMBEDDING}
    assert len(whole) == len(plain) + 1
    for name, columns in plain.items():
        np.testing.assert_array_equal(whole[name], columns)


def test_a_bar_shows_the_chunks(collect: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    done = collect()
    assert "collecting" in done.err
    assert "3/3" in done.err


def test_ctrl_c_writes_nothing(
    collect: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyrllama.collecting._check_finite", interrupted)
    done = collect()
    assert (done.status, done.out) == (130, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "/nowhere.txt"], "/nowhere.txt: the text cannot be read"),
        (["-o", "/no/where/i.gguf"], "i.gguf: cannot be written: there is no such folder"),
        (["-o", "{text}"], "text.txt: is read as well; name another file to write"),
        (["--context", "7"], "context is 7, but it must be from 8 to"),
        (["--chunks", "0"], "chunks is 0"),
        (["--context", "500"], "needs 1000; give a longer text or a context"),
        (["--f16", "--quantize", "q4_0"], "given only once"),
    ],
)
def test_bad_input(
    collect: Run, text: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = collect("-q", *(argument.replace("{text}", str(text)) for argument in arguments))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert not (tmp_path / "i.gguf").exists()


def test_what_must_be_given(run: Run, stories: Path, text: Path) -> None:
    done = run("imatrix", "--model-path", stories, "--text", text)
    assert "Missing option '-o' / '--output'" in done.err
    done = run("imatrix", "--model-path", stories, "-o", text)
    assert "Missing option '--text'" in done.err
