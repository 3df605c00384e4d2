"""``rllama perplexity``: the line, the JSON, the bar, an interruption, and bad input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pyrllama.perplexity import Perplexity

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def test_one_line_is_the_result(run: Run, stories: Path, text: Path) -> None:
    done = run("perplexity", "--model-path", stories, "--file", text, *SMALL)
    assert done.status == 0
    report = json.loads(
        run("perplexity", "--model-path", stories, "--file", text, *SMALL, "--json").out
    )
    assert done.out == (
        f"perplexity {report['perplexity']:.4f} +/- {report['standard_error']:.4f} | "
        f"{report['nats_per_token']:.4f} nats/token | {report['bits_per_byte']:.4f} bits/byte | "
        f"3 of 3 chunks of 32 tokens, 45 scored\n"
    )
    assert done.err.startswith("the model needs ")
    assert done.err.count("\n") == 1


def test_json(run: Run, stories: Path, text: Path) -> None:
    arguments = ("perplexity", "--model-path", stories, "--file", text, "--json", *SMALL)
    done = run(*arguments, "--quantize", "q8_0", "--max-threads", "2")
    assert done.err == ""
    report = json.loads(done.out)
    assert (report["context"], report["chunks"], report["of_chunks"]) == (32, 3, 3)
    assert report["tokens"] == 45
    assert 1 < report["perplexity"] < 20
    assert report["weights"] == "Q8_0"
    assert report["threads"] == 2
    assert report["backend"] == "reference"
    assert report["file"] == str(text)
    assert report["model"]["dim"] == 64
    assert report["seconds"] > 0
    assert "numpy" in report["versions"]


def test_quiet_prints_the_result_alone(run: Run, stories: Path, text: Path) -> None:
    done = run("perplexity", "--model-path", stories, "--file", text, *SMALL, "-q")
    assert done.out.startswith("perplexity ")
    assert done.err == ""


def test_a_bar_shows_the_value_on_a_terminal(
    run: Run, stories: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    done = run("perplexity", "--model-path", stories, "--file", text, *SMALL)
    assert "perplexity " in done.err
    assert "/3" in done.err


def test_no_infinity_in_json(run: Run, stories: Path, text: Path, results: list[float]) -> None:
    results.append(1e6)
    done = run("perplexity", "--model-path", stories, "--file", text, *SMALL, "--json")
    assert json.loads(done.out)["perplexity"] is None


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the measurement: it gives a result for each number of nats, then is interrupted."""
    given: list[float] = []

    def measure(*_: object, **__: object) -> Iterator[Perplexity]:
        for number, nats in enumerate(given, 1):
            yield Perplexity(8, number, 9, 99, tokens=10, bytes=20, nats=nats, squares=nats**2)
        if len(given) != 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("pyrllama.measures.measure", measure)
    return given


def test_ctrl_c_gives_the_value_so_far(
    run: Run, stories: Path, text: Path, results: list[float]
) -> None:
    results += [10.0, 20.0]
    done = run("perplexity", "--model-path", stories, "--file", text, *SMALL)
    assert done.status == 130
    assert "2.0000 nats/token" in done.out
    assert "2 of 9 chunks" in done.out
    done = run("perplexity", "--model-path", stories, "--file", text, *SMALL, "--json")
    assert done.status == 130
    assert json.loads(done.out)["chunks"] == 2


def test_ctrl_c_before_the_first_chunk(
    run: Run, stories: Path, text: Path, results: list[float]
) -> None:
    done = run("perplexity", "--model-path", stories, "--file", text, *SMALL)
    assert (done.status, done.out) == (130, "")
    assert done.err.endswith("no chunk was scored\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing option '--file'"),
        (["--file", "/nowhere.txt"], "/nowhere.txt: the text cannot be read"),
        (["--file", "{text}", "--context", "7"], "context is 7, but it must be from 8 to"),
        (["--file", "{text}", "--context", "513"], "513"),
        (["--file", "{text}", "--chunks", "0"], "chunks is 0"),
        (["--file", "{text}", "--context", "500"], "needs 1000; give a longer text or a context"),
        (["--file", "{text}", "--f16", "--quantize", "q4_0"], "given only once"),
    ],
)
def test_bad_input(run: Run, stories: Path, text: Path, arguments: list[str], said: str) -> None:
    given = [argument.replace("{text}", str(text)) for argument in arguments]
    context = [] if "--context" in given else ["--context", "32"]
    done = run("perplexity", "-q", "--model-path", stories, *given, *context)
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.out == ""


def test_a_text_that_is_not_utf8(run: Run, stories: Path, tmp_path: Path) -> None:
    path = tmp_path / "latin"
    path.write_bytes(b"caf\xe9")
    done = run("perplexity", "--model-path", stories, "--file", path)
    assert done.status == 2
    assert f"{path}: the text is not UTF-8 at byte offset 3 (0xe9)" in done.err


# --- against another model --------------------------------------------------------------------


def compare(run: Run, stories: Path, base: Path, *arguments: str | Path) -> Outcome:
    return run(
        "perplexity", "--model-path", stories, "--quantize", "q4_0", "--kl-divergence", base,
        *arguments,
    )  # fmt: skip


def test_divergence_from_a_model(run: Run, stories: Path, text: Path) -> None:
    done = compare(run, stories, stories, "--file", text, *SMALL)
    assert done.status == 0
    report = json.loads(compare(run, stories, stories, "--file", text, *SMALL, "--json").out)
    found = report["kl_divergence"]
    alone = json.loads(
        run("perplexity", "--model-path", stories, "--file", text, *SMALL, "--json").out
    )
    assert found["base"] == str(stories)
    assert found["base_perplexity"] == alone["perplexity"]  # its weights are as they are stored
    assert report["perplexity"] != alone["perplexity"]
    assert report["weights"] == "Q4_0"
    assert found["perplexity_ratio"] == pytest.approx(report["perplexity"] / alone["perplexity"])
    assert 0 < found["median"] < found["mean"] < found["percentile_99"] <= found["maximum"] < 1
    assert 0.5 < found["same_top"] <= 1
    lines = done.out.splitlines()
    assert lines[0].startswith(f"perplexity {report['perplexity']:.4f} +/- ")
    assert lines[1].startswith(f"base perplexity {alone['perplexity']:.4f} +/- ")
    assert lines[2] == (
        f"perplexity ratio {found['perplexity_ratio']:.6f} +/- "
        f"{found['perplexity_ratio_standard_error']:.6f} | same top token "
        f"{found['same_top']:.3%} +/- {found['same_top_standard_error']:.3%}"
    )
    assert lines[3] == (
        f"KL divergence {found['mean']:.6f} +/- {found['standard_error']:.6f} | median "
        f"{found['median']:.6f} | 99 % {found['percentile_99']:.6f} | maximum "
        f"{found['maximum']:.6f}"
    )
    assert lines[4:] == ["3 of 3 chunks of 32 tokens, 45 scored"]


def test_divergence_from_saved_logits(run: Run, stories: Path, text: Path, tmp_path: Path) -> None:
    logits = tmp_path / "base.logits"
    plain = ("perplexity", "--model-path", stories, "--file", text, *SMALL)
    assert run(*plain, "--save-logits", logits).out == run(*plain).out
    expected = json.loads(compare(run, stories, stories, "--file", text, *SMALL, "--json").out)
    for arguments in ((), ("--file", text)):
        report = json.loads(compare(run, stories, logits, "--json", *arguments).out)
        assert report["perplexity"] == expected["perplexity"]
        found, exact = report["kl_divergence"], expected["kl_divergence"]
        assert found["mean"] == pytest.approx(exact["mean"], abs=1e-4)
        assert found["same_top"] == exact["same_top"]
        assert report["file"] == (str(text) if arguments else None)
    assert compare(run, stories, logits, "--chunks", "1").out.endswith(
        "1 of 1 chunks of 32 tokens, 15 scored\n"
    )


def test_a_bar_shows_the_divergence(
    run: Run, stories: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert "KL divergence" in compare(run, stories, stories, "--file", text, *SMALL).err


def test_what_cannot_be_compared(run: Run, stories: Path, text: Path, tmp_path: Path) -> None:
    logits = tmp_path / "base.logits"
    run("perplexity", "--model-path", stories, "--file", text, *SMALL, "--save-logits", logits)
    other = tmp_path / "other.txt"
    other.write_text("The dog was big. " * 100, "utf-8")
    broken = tmp_path / "broken.logits"
    broken.write_bytes(logits.read_bytes()[:-1])
    cases: tuple[tuple[Path, list[str | Path], str], ...] = (
        (stories, [], "Missing option '--file'"),
        (logits, ["--file", other], "base.logits: was saved of another text from token"),
        (logits, ["--context", "64"], "was saved at a context of 32 tokens"),
        (broken, [], "broken.logits: has "),
        (tmp_path / "none", ["--file", text], "none: "),
        (logits, ["--save-logits", broken], "--save-logits is "),
    )
    for base, arguments, said in cases:
        done = compare(run, stories, base, *arguments)
        assert (done.status, done.out) == (2, "")
        assert done.err.splitlines()[-1].startswith("error: ")
        assert said in done.err
