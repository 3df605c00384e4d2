"""``rllama quantize``: the table, the JSON, the bar, and bad input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.data import default_model_path

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run


def test_the_table_and_the_sum(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    done = run("quantize", default_model_path(), path, "--type", "q4_k_m")
    assert done.status == 0
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line}
    assert rows["tensor"] == ["tensor", "shape", "source", "type", "size", "error"]
    embedding = rows["token_embd.weight"]
    assert embedding[1:7] == ["2048", "x", "256", "Q8_0", "Q6_K", "430.1"]
    assert 1 < float(embedding[-1].rstrip("%")) < 2
    assert rows["output_norm.weight"][-1] == "-"
    assert f"{path}: Q4_K_M, 3." in done.out
    assert "bits a weight" in done.out
    assert "quantised already (Q8_0)" in done.err
    file = GgufFile(path)
    assert file.tensors["blk.0.attn_q.weight"].type.name == "Q4_K"
    assert file.tensors["blk.0.ffn_down.weight"].type.name == "Q8_0"  # rows of 544
    file.close()


def test_json(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    arguments = ("quantize", default_model_path(), path, "--type", "F16", "--threads", "1")
    done = run(*arguments, "--json")
    assert done.err == ""
    report = json.loads(done.out)
    assert report["type"] == "F16"
    assert report["destination"] == str(path)
    assert report["imatrix"] is None
    assert report["requantised"] == ["Q8_0"]
    assert report["seconds"] > 0
    assert 16 < report["bits_per_weight"] < 16.1
    first = report["tensors"][0]
    assert first["name"] == "token_embd.weight"
    assert (first["shape"], first["source"], first["type"]) == ([2048, 256], "Q8_0", "F16")
    assert 0 < first["relative_error"] < 1e-3
    assert report["bytes"] == sum(tensor["n_bytes"] for tensor in report["tensors"])


def test_quiet(run: Run, tmp_path: Path) -> None:
    done = run("quantize", default_model_path(), tmp_path / "m", "--type", "Q4_0", "-q")
    assert (done.status, done.out, done.err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--type", "Q9_K"), "the type is 'Q9_K', but it must be one of F32, F16"),
        (("--type", "Q4_0", "--threads", "0"), "threads is 0"),
        (("--type", "Q4_0", "--imatrix", "no.gguf"), "there is no such file"),
        ((), "Missing option '--type'"),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, arguments: tuple[str, ...], problem: str) -> None:
    done = run("quantize", default_model_path(), tmp_path / "m.gguf", *arguments)
    assert done.status == 2
    assert problem in done.err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(run: Run, tmp_path: Path) -> None:
    done = run("quantize", default_model_path(), tmp_path / "no" / "m", "--type", "Q8_0")
    assert done.status == 2
    assert "cannot be written: No such file or directory" in done.err


def test_another_imatrix(run: Run, tmp_path: Path) -> None:
    model = default_model_path()
    done = run("quantize", model, tmp_path / "m", "--type", "Q4_0", "--imatrix", model)
    assert done.status == 2
    assert "no importance matrix, but a model" in done.err
