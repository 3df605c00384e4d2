"""Write the tables of the README from the results that were measured, or check them.

    python bench/tables.py            # writes
    python bench/tables.py --check    # exit status 1 when a table differs from the results

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "rivals.jsonl"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the latest comparison of every model on every machine, in the order measured."""
    latest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines():
        result = json.loads(line)
        latest[result["model"], result["machine"]["cpu"], result["threads"]] = result
    return list(latest.values())


def rivals_table(results: list[dict[str, Any]]) -> str:
    """Return the comparison with llama.cpp as a Markdown table."""
    rows = [
        "| model | work | llama.cpp | pyrllama | ratio | GB/s | of the bandwidth |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        theirs, ours = result["llama_cpp"], result["pyrllama"]
        rate = ours["decode"] * ours["bytes_per_token"] / 1e9
        for work, extra in (
            ("decode", f"{rate:.1f} | {ours['share']:.0%}"),
            ("prefill", " | "),
        ):
            ratio = ours[work] / theirs[work]
            rows.append(
                f"| {result['model']} | {work} | {theirs[work]:.1f} | {ours[work]:.1f} "
                f"| {ratio:.2f} | {extra} |"
            )
    return "\n".join(rows)


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
    tables = {"rivals": rivals_table(read_results(RESULTS))}
    stale = []
    for path in PAGES:
        page = path.read_text("utf-8")
        fresh = with_tables(page, tables)
        if fresh != page:
            stale.append(path.name)
            if not check:
                path.write_text(fresh, "utf-8")
    if check and stale:
        print(f"{', '.join(stale)}: not what {RESULTS.name} says; run bench/tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
