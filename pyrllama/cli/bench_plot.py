"""A history of ``rllama bench`` as a picture, to see that it gets faster and not slower."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from typing import TYPE_CHECKING, Any

from pyrllama.cli.terminal import printable
from pyrllama.errors import HistoryError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pyrllama.cli.bench_history import Run

WIDTH, PANEL_HEIGHT, LEGEND_ROW = 9.0, 2.6, 0.22
"""Inches of the picture, of each of its parts, and of a line of its legend."""
HEADROOM = 1.2
"""Height of a part over its highest point, for the commit above it."""
MAX_LABEL = 120
COLOURS = ("#3b82f6", "#d97706", "#16a34a", "#d946ef", "#dc2626", "#0891b2", "#a16207", "#7c3aed")
"""Each can be told from a white and from a black background."""
MARKERS = "osD^v<>P"
FOREGROUND = "#010203"
"""What is drawn in this colour takes the colour of the text of the page around it."""
STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rllama",  # the same history gives the same bytes
    "text.parse_math": False,  # a $ in a name is a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
        FOREGROUND,
    ),
}
PANELS: tuple[tuple[str, Callable[[Run], float]], ...] = (
    ("decode, tokens/s", lambda run: run.decode),
    ("prefill, tokens/s", lambda run: run.prefill),
    ("share of the read bandwidth, %", lambda run: 100 * run.share),
)


def write_plot(runs: list[Run], path: Path) -> None:
    """Draw runs over time as an SVG file: speeds and the share of the bandwidth.

    Runs of the same machine, model, type, threads and work are one line; the commit stands at
    the first point that it measured.  Raises ``MissingPackageError`` without matplotlib, and
    ``HistoryError`` when the file cannot be written.
    """
    svg = draw(runs)
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise HistoryError(
            path, f"the plot cannot be written ({error.strerror}); name another"
        ) from error


def draw(runs: list[Run]) -> str:
    """Return the picture as the text of an SVG file that suits light and dark pages."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackageError(
            f"a plot needs matplotlib ({error}): pip install 'pyrllama[plot]'"
        ) from error
    lines = _lines(runs)
    height = len(PANELS) * PANEL_HEIGHT + len(lines) * LEGEND_ROW
    with warnings.catch_warnings(), mpl.rc_context(SETTINGS):
        warnings.simplefilter("ignore")  # of glyphs that its own font lacks: the viewer's may not
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        for axes, (title, value) in zip(
            figure.subplots(len(PANELS), sharex=True), PANELS, strict=True
        ):
            _draw_panel(axes, title, value, lines)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue().replace(FOREGROUND, "currentColor")
    return re.sub(r"<svg\b[^>]*>", lambda root: root[0] + STYLE, svg, count=1)


def _lines(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the runs of every line of the plot in the order of time."""
    lines: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.time):
        lines.setdefault(run.label, []).append(run)
    return lines


def _draw_panel(
    axes: Any, title: str, value: Callable[[Run], float], lines: dict[str, list[Run]]
) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(visible=True, color=FOREGROUND, alpha=0.15)
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    for (label, runs), (colour, marker) in zip(lines.items(), looks, strict=False):
        times, values = [run.time for run in runs], [value(run) for run in runs]
        axes.plot(times, values, label=_shown(label), color=colour, marker=marker, markersize=4)
        for run in _first_of_commits(runs):
            axes.annotate(
                _shown(run.commit),
                (run.time, value(run)),
                xytext=(3, 5),
                textcoords="offset points",
                fontsize="x-small",
                rotation=30,
            )
    axes.set_ylim(0, HEADROOM * max(value(run) for runs in lines.values() for run in runs) or 1)


def _first_of_commits(runs: list[Run]) -> Iterator[Run]:
    """Yield the runs whose commit is not that of the run before."""
    for _, same in itertools.groupby(runs, key=lambda run: run.commit):
        yield next(same)


def _shown(text: str) -> str:
    """Return a text as it may stand in a picture: one line, not too long, no control codes."""
    line = " ".join(printable(text).split())
    return line if len(line) <= MAX_LABEL else line[: MAX_LABEL - 1] + "…"
