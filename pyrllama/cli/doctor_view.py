"""The report of ``rllama doctor`` for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pyrllama.cli.terminal import printable, stdout
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def print_report(report: dict[str, Any]) -> None:
    """Print a report section by section, problems and advice last."""
    sections = {
        "processor": _processor, "memory": _memory, "kernels": _kernels, "hub": _hub,
    }  # fmt: skip
    for name, rows in sections.items():
        if report[name] is not None:
            _print_section(name, rows(report[name]))
    packages = ((name, version or "not installed") for name, version in report["versions"].items())
    _print_section("versions", packages)
    for name, style in (("problems", "red"), ("advice", "yellow")):
        if report[name]:
            _print_section(name, (("-", line) for line in report[name]), style)


def _processor(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "processor", f"{found['cpu']} (LLVM: {found['llvm_cpu']})"
    cores = f"{found['cores'] or 'an unknown number of'} cores, {found['logical_cores']} logical"
    yield "cores", f"{cores}; {found['threads']} threads are used"
    yield "features", " ".join(found["features"])
    yield "instruction set", found["isa"] + (" (forced)" if found["isa_forced"] else "")


def _memory(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "memory", f"{_bytes(found['total'])}, {_bytes(found['free'])} free"
    yield "read bandwidth", f"{found['read_bytes_per_second'] / 1e9:.2f} GB/s, measured now"
    yield "huge pages", found["huge_pages"] or "unknown"


def _kernels(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "cache", _cache(found)
    made = "compiled now" if found["compiled_now"] else "ready"
    yield (
        "compiled",
        f"{found['files']} files; the largest kernel was {made} in "
        + (f"{found['seconds']:.2f} s"),
    )


def _hub(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "cache", _cache(found)
    state = "offline by HF_HUB_OFFLINE" if found["offline"] else f"asks {found['endpoint']}"
    yield "hub", f"{found['models']} models; {state}"


def _cache(found: dict[str, Any]) -> str:
    state = "writable" if found["writable"] else "not writable"
    return f"{found['folder']} ({format_bytes(found['bytes'])}, {state})"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else format_bytes(count)


def _print_section(title: str, rows: Iterable[tuple[str, str]], style: str = "cyan") -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=style, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(printable(value)))
    console = stdout()
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()
