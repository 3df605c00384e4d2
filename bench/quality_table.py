"""The table of what each quantisation costs, from the results of ``quality.py``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Row = dict[str, Any]
DASH = "-"
TITLES = (
    "model", "mixture", "bits a weight", "MB", "error", "perplexity", "mean KL", "99 %", "same top",
    "llama.cpp, same file", "its own file: error", "mean KL", "our perplexity to its own file's",
)  # fmt: skip


def read_quality(path: Path) -> list[Row]:
    """Return the latest row of every model and mixture, each model's most bits first."""
    latest: dict[tuple[str, str], Row] = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        latest[row["model"], row["mixture"]] = row
    models = list(dict.fromkeys(model for model, _ in latest))
    return sorted(latest.values(), key=lambda row: (models.index(row["model"]), -row["bits"]))


def quality_table(rows: list[Row]) -> str:
    """Return the results as a Markdown table."""
    lines = [_line(TITLES), "|---|---|" + "--:|" * (len(TITLES) - 2)]
    lines += [_line(cells(row)) for row in rows]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """Return what a row shows, a dash for what was not measured or cannot be."""
    return [
        row["model"],
        row["mixture"],
        f"{row['bits']:.2f}",
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['error']:.4f}",
        f"{row['perplexity']:.3f}",
        f"{row['kl']:.5f}",
        f"{row['kl_99']:.4f}",
        f"{row['same_top']:.1%}",
        _figure(row, "rival_perplexity", ".3f"),
        _figure(row, "theirs_error", ".4f"),
        _figure(row, "theirs_kl", ".5f"),
        _change(row),
    ]


def _change(row: Row) -> str:
    """Return our perplexity less theirs and its standard error, in percent."""
    if "to_theirs" not in row:
        return DASH
    return f"{row['to_theirs'] - 1:+.2%} ± {row['to_theirs_error']:.2%}"


def _figure(row: Row, key: str, form: str) -> str:
    return format(row[key], form) if key in row else DASH


def _line(texts: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(texts)} |"
