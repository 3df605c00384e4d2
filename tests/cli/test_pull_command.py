"""``rllama pull`` and models named ``hf:``, against a hub on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.hub_server import Hub, Repository, hub_with_empty_cache

import pyrllama

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.cli import Run

GREEDY = ("--prompt", "Once upon", "--temperature", "0", "--max-tokens", "8", "-q")


@pytest.fixture
def hub(tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub with a trained model, a transformers folder and a shelf of GGUF files."""
    hf = stories.parent / "tiny-random-llama-hf"
    with hub_with_empty_cache(tmp_path / "cache", monkeypatch) as server:
        server.repositories["o/stories"] = Repository(
            {
                "stories260K.bin": stories.read_bytes(),
                "tok512.bin": stories.with_name("tok512.bin").read_bytes(),
            }
        )
        server.repositories["o/tiny"] = Repository(
            {file.name: file.read_bytes() for file in hf.iterdir() if file.is_file()}
        )
        server.repositories["o/shelf"] = Repository({"a.Q4_0.gguf": b"x", "b.Q4_0.gguf": b"xy"})
        yield server


def test_pull_prints_the_path(run: Run, hub: Hub) -> None:
    done = run("pull", "o/stories:stories260K.bin")
    assert done.status == 0
    assert done.out.endswith("stories260K.bin\n")
    assert done.err == (
        'run it with: rllama --model-path hf:o/stories:stories260K.bin --prompt "..."\n'
    )
    again = run("pull", "hf:o/stories:stories260K.bin", "-q")
    assert (again.out, again.err) == (done.out, "")
    assert len(hub.transfers()) == 2  # the model and its tokenizer, once


def test_generate_from_the_hub(run: Run, hub: Hub, stories: Path) -> None:
    done = run("--model-path", "hf:o/stories:stories260K.bin", *GREEDY)
    assert done.status == 0
    assert done.out == run("--model-path", stories, *GREEDY).out
    assert done.err == ""


def test_inspect_a_folder_of_the_hub(run: Run, hub: Hub) -> None:
    report = json.loads(run("inspect", "hf:o/tiny", "--json").out)
    assert report["format"].startswith("Hugging Face")
    assert report["tokenizer"]["tokens"] == 32_000


def test_the_api_takes_the_same_names(hub: Hub) -> None:
    with pyrllama.load("hf:o/stories:stories260K.bin", backend="reference") as llama:
        assert llama.config.dim == 64


@pytest.mark.parametrize("command", [("pull", "{}"), ("--prompt", "x", "--model-path", "hf:{}")])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("o/shelf", "2 files may be Q4_0: a.Q4_0.gguf (1 B), b.Q4_0.gguf (2 B)"),
        ("o/none", "there is no repository o/none"),
        ("stories", "names no model on the hub; write OWNER/REPO"),
    ],
)
def test_errors_are_one_line(
    run: Run, hub: Hub, command: tuple[str, ...], name: str, said: str
) -> None:
    done = run(*(part.format(name) for part in command))
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert said in done.err
    assert done.out == ""
