"""What runs when no model is named: the one in the package, and a story without anything."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import pyrllama
from pyrllama import cpu
from pyrllama.cli import main
from pyrllama.cli.commands import FIRST_WORDS

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run

USING = "using the small story model that comes with rllama; for a real one give --model-path"


def test_nothing_at_all_tells_a_story(run: Run, packaged: Path) -> None:
    done = run()
    assert done.status == 0
    assert done.out.startswith(FIRST_WORDS)
    assert len(done.out) > len(FIRST_WORDS) + 20
    story, model, memory, figures = done.err.splitlines()
    assert story.startswith(f'telling a story from "{FIRST_WORDS}"; yours: rllama --prompt')
    assert model.startswith(USING)
    assert memory.startswith("the model needs ")
    assert "tokens/s" in figures


def test_a_prompt_alone_runs_the_packaged_model(run: Run, packaged: Path) -> None:
    settings = ("--prompt", "Once upon", "--temperature", "0", "--max-tokens", "10")
    alone = run(*settings)
    assert alone.status == 0
    assert alone.out == run("--model-path", packaged, *settings).out
    assert alone.err.startswith(USING)
    assert "hf:OWNER/REPO" in alone.err.splitlines()[0]


def test_quiet_says_nothing(run: Run, packaged: Path) -> None:
    done = run("-q", "--prompt", "Once", "--max-tokens", "3")
    assert (done.status, done.err) == (0, "")


def test_json_names_the_packaged_model(run: Run, packaged: Path) -> None:
    done = run("--prompt", "Once", "--max-tokens", "3", "--json")
    assert json.loads(done.out)["model"]["path"] == "the model of the package"
    assert done.err == ""


def test_other_options_still_want_a_prompt(run: Run, packaged: Path) -> None:
    done = run("--temperature", "0")
    assert done.status == 2
    assert done.err.startswith("error: there is no prompt; give one with --prompt")


def test_bench_fits_its_prompt_into_the_context(
    run: Run, packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "read_bandwidth", lambda _: 1e10)
    done = run("bench", "--generate-tokens", "500", "--repetitions", "1", "--json")
    report = json.loads(done.out)
    assert report["source"] == "the model of the package"
    counts = {"prompt_tokens": 12, "generate_tokens": 500, "repetitions": 1}
    assert counts.items() <= report["workload"].items()


def test_inspect_describes_it(run: Run, packaged: Path) -> None:
    done = run("inspect")
    assert done.status == 0
    assert "260 K" in done.out
    assert done.err.startswith(USING)


def test_perplexity_measures_it(run: Run, packaged: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a dog. " * 20, encoding="utf-8")
    done = run("perplexity", "--file", text, "--context", "32", "--chunks", "1")
    assert done.status == 0
    assert done.err.startswith(USING)


def test_the_api_loads_it_too(packaged: Path) -> None:
    with pyrllama.load(backend="reference") as llama:
        assert llama.config.dim == 64


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    done = run("completion", shell)
    assert done.status == 0
    assert f"_RLLAMA_COMPLETE={shell}_complete" in done.out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("rllama ", {"generate", "bench", "pull", "doctor"}),
        ("rllama --te", {"--temperature"}),
        ("rllama --model-path x --backend r", {"reference"}),
        ("rllama bench --sh", {"--shape"}),
    ],
)
def test_completion_knows_the_bare_form(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    offered: set[str],
) -> None:
    monkeypatch.setenv("_RLLAMA_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit):
        main([])
    lines = capfd.readouterr().out.splitlines()
    assert offered <= {line.partition(",")[2] for line in lines}
