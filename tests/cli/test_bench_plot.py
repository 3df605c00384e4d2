"""The plot of a history: every line and every commit, as text, on any background."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from support.bench_runs import line

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run

# What matplotlib's own dependencies deprecate among themselves is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def history(tmp_path: Path) -> Path:
    path = tmp_path / "speed.jsonl"
    path.write_bytes(
        line()
        + line(time="2026-11-03T12:00:00Z", commit="5d6e7f8", share_of_bandwidth=0.95)
        + line(time="2026-11-02T12:00:00Z", decode_tokens_per_second={"median": 41.5})
        + line(time="2026-11-02T12:00:00Z", weights="Q8_0", commit="$x$ <&> \x1b 日本")
    )
    return path


def texts(svg: Path) -> list[str]:
    return ["".join(text.itertext()) for text in ET.parse(svg).iter(f"{SVG}text")]


def test_lines_and_commits(run: Run, history: Path, tmp_path: Path) -> None:
    plot = tmp_path / "speed.svg"
    before = history.read_bytes()
    done = run("bench", "--history", history, "--plot", plot)
    assert (done.status, done.out, done.err) == (0, "", "")
    assert history.read_bytes() == before
    found = texts(plot)
    for title in ("decode, tokens/s", "prefill, tokens/s", "share of the read bandwidth, %"):
        assert found.count(title) == 1
    assert "1b Q4_0, 2 threads of abacus, prompt 512, context 512" in found
    assert "1b Q8_0, 2 threads of abacus, prompt 512, context 512" in found
    # Once in each of the three parts; a commit that was measured again is not written again.
    assert found.count("1a2b3c4") == 3
    assert found.count("5d6e7f8") == 3
    assert found.count("$x$ <&> \N{REPLACEMENT CHARACTER} 日本") == 3


def test_it_suits_light_and_dark_pages(run: Run, history: Path, tmp_path: Path) -> None:
    plot = tmp_path / "speed.svg"
    run("bench", "--history", history, "--plot", plot)
    svg = plot.read_text("utf-8")
    assert "prefers-color-scheme:dark" in svg
    for text in ET.parse(plot).iter(f"{SVG}text"):
        assert "fill: currentColor" in text.attrib["style"]
    for colour in ("#000000", "#ffffff", "white", "black", "#010203"):
        assert colour not in svg


def test_the_same_history_gives_the_same_file(run: Run, history: Path, tmp_path: Path) -> None:
    plots = [tmp_path / name for name in ("a.svg", "b.svg")]
    for plot in plots:
        run("bench", "--history", history, "--plot", plot)
    assert plots[0].read_bytes() == plots[1].read_bytes()


@pytest.mark.parametrize("figure", [0, 1e15])
def test_a_single_run_of_any_speed(run: Run, tmp_path: Path, figure: float) -> None:
    history, plot = tmp_path / "speed.jsonl", tmp_path / "speed.svg"
    history.write_bytes(line(decode_tokens_per_second={"median": figure}))
    assert run("bench", "--history", history, "--plot", plot).status == 0
    assert texts(plot).count("1a2b3c4") == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--plot", "p.svg"], "--plot needs --history FILE"),
        (["--plot", "p.svg", "--history", "{history}", "--shape", "1b"], "Leave out --shape"),
        (["--plot", "p.svg", "--history", "{history}", "--json"], "Leave out --json"),
        (["--plot", "p.svg", "--history", "{history}", "-d", "5"], "Leave out --depth"),
        (["--plot", "{history}", "--history", "{history}"], "would replace the history"),
        (["--plot", "no/p.svg", "--history", "{history}"], "no/p.svg: the plot cannot be written"),
        (["--plot", "p.svg", "--history", "{history}.old"], "cannot be read"),
    ],
)
def test_bad_settings(
    run: Run, history: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str
) -> None:
    monkeypatch.chdir(history.parent)
    before = history.read_bytes()
    done = run("bench", *(word.replace("{history}", str(history)) for word in arguments))
    assert (done.status, done.out) == (2, "")
    assert named in done.err
    assert history.read_bytes() == before
    assert not (history.parent / "p.svg").exists()


def test_the_damaged_line_is_named(run: Run, history: Path, tmp_path: Path) -> None:
    history.write_bytes(history.read_bytes() + b"{}\n")
    done = run("bench", "--history", history, "--plot", tmp_path / "p.svg")
    assert done.status == 2
    assert f"{history}:5: " in done.err


def test_without_matplotlib(
    run: Run, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("bench", "--history", history, "--plot", tmp_path / "p.svg")
    assert done.status == 2
    assert "pip install 'pyrllama[plot]'" in done.err
