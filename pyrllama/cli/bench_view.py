"""The report of ``rllama bench`` as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from pyrllama.cli.terminal import stdout
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator


def print_report(report: dict[str, Any]) -> None:
    """Print the figures for people, one a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(report):
        table.add_row(name, value)
    stdout().print(table)


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    work = report["workload"]
    yield (
        "model",
        f"{report['source']}, weights {report['weights']}, KV cache {report['kv_type'].upper()}",
    )
    yield "workload", _workload(work, report["threads"])
    yield "prefill", _rate(report["prefill_tokens_per_second"])
    yield "decode", _rate(report["decode_tokens_per_second"])
    yield (
        "read per step",
        f"{format_bytes(report['bytes_per_step'])} of weights, "
        f"{format_bytes(report['kv_cache_bytes_per_step'])} of KV cache",
    )
    bandwidth = report["read_bandwidth_gigabytes_per_second"]
    yield (
        "bandwidth",
        f"{report['gigabytes_per_second']:.2f} GB/s, "
        f"{report['share_of_bandwidth']:.1%} of {max(bandwidth.values()):.2f} GB/s "
        f"(before {bandwidth['before']:.2f}, after {bandwidth['after']:.2f})",
    )
    yield "load", f"{report['load_seconds']:.2f} s"
    yield "first token", f"{report['first_token_seconds']:.3f} s"
    peak = report["peak_memory_bytes"]
    yield "memory", "unknown" if peak is None else f"{format_bytes(peak)} at most"
    for name, value in report["machine"].items():
        yield name, " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    yield "versions", ", ".join(f"{name} {value}" for name, value in report["versions"].items())


def _workload(work: dict[str, int], threads: int) -> str:
    sequences = f"{work['sequences']} sequences, " if work["sequences"] > 1 else ""
    return (
        f"{sequences}prompt of {work['prompt_tokens']} tokens, then {work['generate_tokens']} "
        f"behind a context of {work['depth']}, {work['repetitions']} repetitions, "
        f"{threads} threads"
    )


def _rate(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} tokens/s (median; {spread['min']:.2f} to {spread['max']:.2f})"
