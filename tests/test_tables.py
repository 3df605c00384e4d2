"""The tables of the pages are what the measured results say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bars import Bar, bar_of
from quality_table import quality_table, read_quality
from tables import (
    bars_table,
    commands_list,
    machine_tables,
    read_results,
    rivals_table,
    with_tables,
)
from works import Work, parse_work

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "tables.py"


def test_tables_are_made_from_the_results() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def result(model: str, work: str, **programs: Any) -> dict[str, Any]:
    named = {name.replace("_", "."): program for name, program in programs.items()}
    machine = {"llvm_cpu": "abacus"}
    return {"model": model, "work": work, "threads": 2, "machine": machine, "programs": named}


def did(value: float, *command: str, **details: Any) -> dict[str, Any]:
    return {"value": value, "command": list(command), **details}


RESULTS = [
    result("1b-q4_0", "start", llama_cpp=did(0.64, "c"), pyrllama=did(0.72, "r")),
    result("1b-q4_0", "memory", llama_cpp=did(1.52e9, "c"), pyrllama=did(0.83e9, "r")),
    result(
        "1b-q4_0",
        "decode",
        llama_cpp=did(28, "b", "-n", "1 2"),
        pyrllama=did(48, "r", gigabytes_per_second=33.36, share_of_bandwidth=0.949),
    ),
    result("1b-q4_0", "prefill:512", llama_cpp=did(282), torch=did(622), pyrllama=did(1244.4)),
    result("7b-f16", "depth:8192", pyrllama=did(2)),
]


@pytest.fixture
def results(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "rivals.jsonl"
    old = result("1b-q4_0", "decode", llama_cpp=did(1), pyrllama=did(1))
    path.write_text("".join(json.dumps(r) + "\n" for r in [old, *RESULTS]), "utf-8")
    return read_results(path)


def test_the_latest_result_of_each_work_counts_and_works_are_in_order(
    results: list[dict[str, Any]],
) -> None:
    works = [(r["model"], r["work"]) for r in results]
    assert works == [
        ("1b-q4_0", "prefill:512"),
        ("1b-q4_0", "decode"),
        ("1b-q4_0", "start"),
        ("1b-q4_0", "memory"),
        ("7b-f16", "depth:8192"),
    ]
    assert results[1]["programs"]["pyrllama"]["value"] == 48


def test_the_short_table(results: list[dict[str, Any]]) -> None:
    assert rivals_table(results).splitlines()[2:] == [
        "| 1b-q4_0 | prefill, 512 tokens | 282.0 | 1,244 | 4.41 |  |  |",
        "| 1b-q4_0 | decode | 28.0 | 48.0 | 1.71 | 33.4 | 95% |",
        "| 1b-q4_0 | start to first token, s | 0.64 | 0.72 | 1.12 |  |  |",
        "| 1b-q4_0 | peak memory, GB | 1.52 | 0.83 | 0.55 |  |  |",
        "| 7b-f16 | decode behind 8,192 tokens | - | 2.0 | - |  |  |",
    ]


def test_the_table_of_bars(results: list[dict[str, Any]]) -> None:
    assert bars_table(results).splitlines() == [
        "| model | work | llama.cpp | torch | pyrllama | to llama.cpp | wanted | to the best "
        "| wanted |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
        "| 1b-q4_0 | prefill, 512 tokens | 282.0 | 622.0 | 1,244 | 4.41 | ≥ 2.5 | 2.00 | ≥ 1.2 |",
        "| 1b-q4_0 | decode | 28.0 | - | 48.0 | 1.71 | ≥ 1.2 | 1.71 | - |",
        "| 1b-q4_0 | start to first token, s | 0.64 | - | 0.72 | 1.12 | ≤ 1.2 | 1.12 | - |",
        "| 1b-q4_0 | peak memory, GB | 1.52 | - | 0.83 | 0.55 | ≤ 0.65 | 0.55 | - |",
        "| 7b-f16 | decode behind 8,192 tokens | - | - | 2.0 | - | - | - | - |",
    ]


def test_the_commands_stand_there_once(results: list[dict[str, Any]]) -> None:
    assert commands_list(results[1:4]) == "```text\nb -n '1 2'\nr\nc\n```"


def test_the_table_of_quality_has_the_latest_rows_and_most_bits_first(tmp_path: Path) -> None:
    ours = {
        "error": 0.0751,
        "perplexity": 7.4453,
        "kl": 0.00883,
        "kl_99": 0.0517,
        "same_top": 0.9525,
    }
    old = {"model": "m", "mixture": "Q4_0", "bits": 4.5, "bytes": 1}
    new = {**old, "bits": 4.72, "bytes": 3262848, **ours}
    rival = {"rival_perplexity": 7.4468, "theirs_error": 0.07909, "theirs_kl": 0.01015}
    rival |= {"to_theirs": 1.0017, "to_theirs_error": 0.0016}
    first = {**new, "mixture": "Q8_0", "bits": 8.5, **rival}
    path = tmp_path / "quality.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (old, new, first)), "utf-8")
    assert quality_table(read_quality(path)).splitlines()[2:] == [
        "| m | Q8_0 | 8.50 | 3.26 | 0.0751 | 7.445 | 0.00883 | 0.0517 | 95.2% | 7.447 | 0.0791 "
        "| 0.01015 | +0.17% ± 0.16% |",
        "| m | Q4_0 | 4.72 | 3.26 | 0.0751 | 7.445 | 0.00883 | 0.0517 | 95.2% | - | - | - | - |",
    ]


def test_each_machine_has_tables_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rivals.jsonl"
    other = {**RESULTS[2], "machine": {"llvm_cpu": "slide rule"}}
    path.write_text("".join(json.dumps(r) + "\n" for r in (RESULTS[2], other, RESULTS[4])), "utf-8")
    results = read_results(path)
    tables = machine_tables(results)
    assert set(tables) == {
        f"{name} {machine}"
        for name in ("rivals", "bars", "commands")
        for machine in ("abacus", "slide rule")
    }
    of_other = [r for r in results if r["machine"]["llvm_cpu"] == "slide rule"]
    assert tables["rivals slide rule"] == rivals_table(of_other)
    assert tables["rivals slide rule"].count("\n") == 2
    assert tables["rivals abacus"].count("\n") == 3


def test_a_page_with_tables() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"
    assert with_tables(page, {"x": "| new |", "z": "none"}) == (
        "a\n<!-- x -->\n| new |\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"
    )


@pytest.mark.parametrize(
    ("model", "work", "bar"),
    [
        ("1b-q8_0", "prefill:512", Bar(2.5, 1.2)),
        ("1b-bf16", "prefill:512", Bar(None, 1.2)),
        ("7b-q4_0", "prefill:128", Bar(2.5)),
        ("7b-f16", "decode", Bar(1.3)),
        ("1b-f16", "decode", Bar(1.3)),
        ("1b-q8_0", "decode", Bar(1.2)),
        ("7b-q4_0", "decode", Bar(1.1)),
        ("110m-q8_0", "decode", Bar(1.3)),
        ("1b-q4_0", "depth:8192", Bar(1.3)),
        ("1b-q4_0", "sequences:8", Bar(1.5)),
        ("1b-q4_0", "start", Bar(1.2)),
        ("7b-q4_0", "start", Bar(0.5)),
        ("7b-q4_0", "memory", Bar(0.65)),
        ("7b-q4_0", "prefill:512", None),
        ("1b-q6_k", "prefill:512", Bar(2.0)),
        ("7b-q4_k_m", "prefill:64", Bar(2.0)),
        ("1b-iq4_xs", "decode", Bar(1.05)),
        ("13b-q4_0", "decode", None),
        ("other", "decode", None),
    ],
)
def test_bars(model: str, work: str, bar: Bar | None) -> None:
    parsed: Work = parse_work(work)
    assert bar_of(model, parsed) == bar
