"""``rllama cache`` and the options of the prompt cache, over a fake backend and a real folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_model import ByteTokenizer, CopyingModel

from pyrllama.cli.cache import age
from pyrllama.llama import Llama
from pyrllama.prefix import PrefixCache
from pyrllama.prompt_store import PromptStore

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run

PROMPT = "Once upon a time " * 20
LABEL = {"model": "/models/7b.gguf", "weights": "Q4_0"}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace ``load`` by one that keeps its settings and opens the folder it is given."""
    given: dict[str, Any] = {}

    def load(path: Path, **settings: Any) -> Llama:
        given.update(settings)
        model = CopyingModel(n_blocks=32, max_batch_tokens=64)
        folder = settings["prompt_cache"]
        store = folder and PromptStore(
            folder, b"m" * 32, LABEL, 256,
            max_bytes=settings["prompt_cache_bytes"], on_note=settings["on_note"],
        )  # fmt: skip
        return Llama(model, ByteTokenizer(), 1024, prefixes=PrefixCache(model, store=store))

    monkeypatch.setattr("pyrllama.cli.model.load", load)
    monkeypatch.delenv("RLLAMA_PROMPT_CACHE", raising=False)
    return given


def generate(run: Run, *options: str | Path) -> dict[str, Any]:
    done = run("--model-path", "m", "--prompt", PROMPT, "--max-tokens", "5", "--temperature", "0",
               "--json", *options)  # fmt: skip
    assert done.status == 0, done.err
    report: dict[str, Any] = json.loads(done.out)
    return report


@pytest.mark.usefixtures("settings")
def test_the_second_run_says_what_it_reused(run: Run, tmp_path: Path) -> None:
    first, second = (generate(run, "--prompt-cache", tmp_path) for _ in range(2))
    assert first["text"] == second["text"]
    assert (first["timings"]["reused_tokens"], second["timings"]["reused_tokens"]) == (0, 320)
    assert first["not_reused"] == "no earlier text begins like it"
    done = run("--model-path", "m", "--prompt", PROMPT, "--prompt-cache", tmp_path,
               "--max-tokens", "5")  # fmt: skip
    assert "prompt 341 tokens (320 reused)" in done.err


@pytest.mark.usefixtures("settings")
def test_what_is_kept_can_be_listed_and_removed(run: Run, tmp_path: Path) -> None:
    generate(run, "--prompt-cache", tmp_path)
    listed = json.loads(run("cache", "list", "--prompt-cache", tmp_path, "--json").out)
    (model,) = listed["models"]
    assert listed["bytes"] == model["bytes"] == 10 * (256 + 88)
    assert (model["tokens"], model["label"]) == (320, LABEL)
    shown = run("cache", "list", "--prompt-cache", tmp_path).out
    for part in ("/models/7b.gguf", "Q4_0", "320", "just now"):
        assert part in shown
    cleared = json.loads(run("cache", "clear", "--prompt-cache", tmp_path, "--json").out)
    assert cleared == {"folder": str(tmp_path), "removed_bytes": model["bytes"]}
    assert run("cache", "clear", "--prompt-cache", tmp_path).out.startswith("removed 0 B from ")
    assert run("cache", "list", "--prompt-cache", tmp_path).out == f"{tmp_path}: 0 B\n"


def test_prompts_of_the_cpu_are_kept_in_the_users_cache(
    run: Run, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pyrllama.cli.reuse_options.default_folder", lambda: tmp_path)
    generate(run, "--backend", "cpu")
    assert settings["prompt_cache"] == tmp_path
    assert settings["prompt_cache_bytes"] == 4 << 30
    generate(run, "--backend", "cpu", "--no-prompt-cache")
    assert settings["prompt_cache"] is None
    generate(run, "--backend", "opencl")
    assert settings["prompt_cache"] is None
    generate(run, "--backend", "cpu", "--prompt-cache-size", "0.5", "--lookup")
    assert settings["prompt_cache_bytes"] == 1 << 29
    assert settings["lookup"] is True
    monkeypatch.setenv("RLLAMA_PROMPT_CACHE", str(tmp_path / "named"))
    generate(run, "--backend", "opencl")
    assert settings["prompt_cache"] == tmp_path / "named"


def test_a_folder_that_cannot_be_used_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pyrllama.cli.cache.stored_models", denied)
    monkeypatch.setattr("pyrllama.cli.cache.clear_folder", denied)
    for command in ("list", "clear"):
        done = run("cache", command, "--prompt-cache", tmp_path)
        assert done.status == 2
        assert done.err.startswith(f"error: {tmp_path}: the prompt cache cannot be ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (59, "just now"), (60, "1 minute ago"), (7300, "2 hours ago"),
     (86_400, "1 day ago"), (-5, "just now")],
)  # fmt: skip
def test_ages_are_in_the_largest_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text
