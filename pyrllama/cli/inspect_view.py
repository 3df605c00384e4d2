"""The report of ``rllama inspect`` as tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pyrllama.cli.terminal import printable, stdout
from pyrllama.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

SHOWN_CHARACTERS = 100
"""Characters of a metadata value that are shown."""


def print_report(report: dict[str, Any], *, all_tensors: bool) -> None:
    """Print a report section by section."""
    console = stdout()
    if report["problem"]:
        console.print(Text(f"cannot run: {printable(report['problem'])}", style="yellow"))
        console.print()
    _print_pairs(console, "model", _model_pairs(report))
    if report["config"]:
        config = {key: value for key, value in report["config"].items() if value is not None}
        _print_pairs(console, "config", config.items())
    if report["types"]:
        _print_types(console, report["types"])
    if all_tensors:
        _print_tensors(console, report["tensors"])
    if report["memory"]:
        _print_memory(console, report["memory"])
    _print_pairs(console, "tokenizer", report["tokenizer"].items())
    if report["metadata"]:
        _print_pairs(console, "metadata", report["metadata"].items())


def _model_pairs(report: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for key in ("path", "format", "architecture"):
        yield key, report[key]
    yield "parameters", format_count(report["parameters"])
    if report["active_parameters"] is not None:
        yield "of them active", format_count(report["active_parameters"])
    yield "weights", format_bytes(report["bytes"])


def _print_pairs(console: Console, title: str, pairs: Iterable[tuple[str, Any]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in pairs:
        table.add_row(Text(printable(str(key))), Text(_shown(value)))
    _print_table(console, title, table)


def _shown(value: Any) -> str:
    match value:
        case str():
            text = value
        case {"length": int(length), "first": list(first)}:
            text = f"{length} elements: {json.dumps(first, ensure_ascii=False)[:-1]}, ..."
        case _:
            text = json.dumps(value, ensure_ascii=False)
    text = printable(text.replace("\n", "\\n"))
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."


def _print_types(console: Console, types: dict[str, dict[str, int]]) -> None:
    table = new_table("type", tensors="right", size="right", **{"in memory": "right"})
    for name, row in types.items():
        sizes = (format_bytes(row[key]) for key in ("bytes", "memory"))
        table.add_row(name, str(row["tensors"]), *sizes)
    _print_table(console, "types", table)


def _print_tensors(console: Console, tensors: list[dict[str, Any]]) -> None:
    table = new_table("tensor", shape="right", type="left", size="right")
    for row in tensors:
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(Text(printable(row["name"])), shape, row["type"], format_bytes(row["bytes"]))
    _print_table(console, "tensors", table)


def _print_memory(console: Console, memory: dict[str, Any]) -> None:
    table = new_table("weights as", weights="right", total="right")
    for name, size in memory["weights"].items():
        table.add_row(name, format_bytes(size), format_bytes(memory["total"][name]))
    cache = f"{format_bytes(memory['kv_cache'])} of KV cache for {memory['context']} tokens"
    _print_table(console, f"memory, with {cache}", table)


def new_table(first: str, **justified: Any) -> Table:
    """Return an empty table with the sides to which its columns are justified."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, style="cyan", no_wrap=True)
    for name, side in justified.items():
        table.add_column(name, justify=side, no_wrap=True)
    return table


def _print_table(console: Console, title: str, table: Table) -> None:
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()
