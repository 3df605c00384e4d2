"""Write the tables of the pages from the results that were measured, or check them.

    python bench/tables.py            # writes
    python bench/tables.py --check    # exit status 1 when a table differs from the results

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.  For each machine, which has LLVM's
name of its processor, ``rivals MACHINE`` is the short one, ``bars MACHINE`` the one with every
rival and the ratios that are wanted, and ``commands MACHINE`` lists what was run there.
``quality`` is what each quantisation costs.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from bars import Bar, bar_of
from quality_table import quality_table, read_quality
from works import Kind, Work, parse_work

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "rivals.jsonl"
QUALITY = RESULTS.with_name("quality.jsonl")
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
OURS = "pyrllama"
LLAMA_CPP = "llama.cpp"
DASH = "-"
Result = dict[str, Any]


def read_results(path: Path) -> list[Result]:
    """Return the latest result of every work, model and machine, sorted as its table shows them.

    Models stand in the order in which they were first measured, and works in that of ``Kind``.
    """
    latest: dict[tuple[str, str, str, int], Result] = {}
    for line in path.read_text("utf-8").splitlines():
        result = json.loads(line)
        key = (machine_of(result), result["model"], result["work"], result["threads"])
        latest[key] = result
    models = list(dict.fromkeys(result["model"] for result in latest.values()))
    kinds = list(Kind)

    def place(result: Result) -> tuple[int, int, int]:
        work = parse_work(result["work"])
        return models.index(result["model"]), kinds.index(work.kind), work.n

    return sorted(latest.values(), key=place)


def machine_of(result: Result) -> str:
    """Return the name of the machine that a result is of."""
    return str(result["machine"]["llvm_cpu"])


def machine_tables(results: list[Result]) -> dict[str, str]:
    """Return every machine's tables, by name."""
    machines = {machine_of(result): list[Result]() for result in results}
    for result in results:
        machines[machine_of(result)].append(result)
    makers = {"rivals": rivals_table, "bars": bars_table, "commands": commands_list}
    return {
        f"{name} {machine}": make(measured)
        for machine, measured in machines.items()
        for name, make in makers.items()
    }


def rivals_table(results: list[Result]) -> str:
    """Return the comparison with llama.cpp as a Markdown table."""
    rows = [
        "| model | work | llama.cpp | pyrllama | ratio | GB/s | of the bandwidth |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        work, programs = parse_work(result["work"]), result["programs"]
        theirs, ours = programs.get(LLAMA_CPP), programs[OURS]
        rows.append(
            f"| {result['model']} | {work.title} | {figure(theirs, work)} | {figure(ours, work)} "
            f"| {ratio(ours, theirs)} | {rate(ours)} | {share(ours)} |"
        )
    return "\n".join(rows)


def bars_table(results: list[Result]) -> str:
    """Return every program's figure, and our ratios beside those that are wanted."""
    rivals = list(dict.fromkeys(n for r in results for n in r["programs"] if n != OURS))
    titles = ["model", "work", *rivals, OURS, "to llama.cpp", "wanted", "to the best", "wanted"]
    rows = [_row(titles), "|---|---|" + "--:|" * (len(titles) - 2)]
    for result in results:
        work, programs = parse_work(result["work"]), result["programs"]
        theirs, ours = programs.get(LLAMA_CPP), programs[OURS]
        best = best_rival(programs, work)
        bar = bar_of(result["model"], work) or Bar()
        cells = [result["model"], work.title]
        cells += [figure(programs.get(rival), work) for rival in rivals]
        cells += [figure(ours, work), ratio(ours, theirs), wanted(bar.llama_cpp, work)]
        cells += [ratio(ours, best), wanted(bar.best, work)]
        rows.append(_row(cells))
    return "\n".join(rows)


def commands_list(results: list[Result]) -> str:
    """Return every command that was run, once, in a block of text."""
    commands = (program["command"] for result in results for program in result["programs"].values())
    lines = dict.fromkeys(shlex.join(command) for command in commands)
    return "\n".join(["```text", *lines, "```"])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def best_rival(programs: dict[str, Any], work: Work) -> dict[str, Any] | None:
    """Return the rival whose figure is the best."""
    rivals = [program for name, program in programs.items() if name != OURS]
    choose = min if work.less_is_better else max
    return choose(rivals, key=lambda program: program["value"], default=None)


def figure(program: dict[str, Any] | None, work: Work) -> str:
    """Return a program's figure in the unit of the work."""
    if program is None:
        return DASH
    value = program["value"]
    match work.kind:
        case Kind.START:
            return f"{value:.2f}"
        case Kind.MEMORY:
            return f"{value / 1e9:.2f}"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def ratio(ours: dict[str, Any], theirs: dict[str, Any] | None) -> str:
    """Return our figure over theirs."""
    return DASH if theirs is None else f"{ours['value'] / theirs['value']:.2f}"


def wanted(bar: float | None, work: Work) -> str:
    """Return the ratio that is wanted."""
    return DASH if bar is None else f"{'≤' if work.less_is_better else '≥'} {bar}"


def rate(ours: dict[str, Any]) -> str:
    """Return the GB/s at which weights were read."""
    return f"{ours['gigabytes_per_second']:.1f}" if "gigabytes_per_second" in ours else ""


def share(ours: dict[str, Any]) -> str:
    """Return the share of the bandwidth that this is."""
    return f"{ours['share_of_bandwidth']:.0%}" if "share_of_bandwidth" in ours else ""


def with_tables(page: str, tables: dict[str, str]) -> str:
    """Return a page with every marked table replaced."""
    for name, table in tables.items():
        block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        page = block.sub(lambda found, t=table: f"{found[1]}{t}\n{found[2]}", page)  # type: ignore[misc]
    return page


def main() -> int:
    """Write the tables, or check that they are what the results say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    results = read_results(RESULTS)
    tables = machine_tables(results) | {"quality": quality_table(read_quality(QUALITY))}
    stale = []
    for path in PAGES:
        page = path.read_text("utf-8")
        fresh = with_tables(page, tables)
        if fresh != page:
            stale.append(path.name)
            if not check:
                path.write_text(fresh, "utf-8")
    if check and stale:
        print(f"{', '.join(stale)}: not what the results say; run bench/tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
