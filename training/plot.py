"""Draw the curves of a training log: ``python -m training.plot [LOG [SVG]]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 400, 60, 20, 20, 50
LOW, HIGH = 0.85, 1.25
"""Bits per byte at the bottom and at the top; what is over it is cut off."""
STUDENT, TUNE, TEACHER, TOGETHER = "#1f5fbf", "#c2410c", "#9ca3af", "#374151"
FONT = 'font-family="sans-serif" font-size="13"'


def main() -> None:
    """Read the log, write the picture."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    log, picture = [*paths, *(HERE / "log.jsonl", HERE / "curves.svg")[len(paths) :]]
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    picture.write_text(draw(lines), encoding="utf-8")


def draw(lines: list[dict[str, object]]) -> str:
    """Return the picture: held-out bits per byte of every run over its steps."""
    curves = read_curves(lines)
    last = max(step for points in curves.values() for step, _ in points)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    parts += axes(last)
    for run, points in curves.items():
        path = " ".join(f"{x(step, last):.1f},{y(score):.1f}" for step, score in points)
        width = 1 if colour(run) == TEACHER else 2.5
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour(run)}" stroke-width="{width}"/>'
        )
    together = [line["held_out"] for line in lines if line["run"] == "teachers"]
    if together and isinstance(together[0], float):
        height = y(together[0])
        parts.append(
            f'<line x1="{LEFT}" y1="{height:.1f}" x2="{WIDTH - RIGHT}" y2="{height:.1f}" '
            f'stroke="{TOGETHER}" stroke-dasharray="6 4"/>'
        )
    return "\n".join([*parts, *legend(), "</svg>", ""])


def read_curves(lines: list[dict[str, object]]) -> dict[str, list[tuple[int, float]]]:
    """Return step and score of every run's measurements."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        run, step, score = line["run"], line.get("step"), line.get("held_out")
        if not isinstance(run, str) or not isinstance(step, int) or not isinstance(score, float):
            continue
        if score <= HIGH:
            curves.setdefault(run, []).append((step, score))
    return curves


def axes(last: int) -> list[str]:
    """Return the grid with its labels."""
    parts = []
    for number in range(9):
        score = LOW + number * (HIGH - LOW) / 8
        at = f"{y(score):.1f}"
        parts += [
            f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>',
            f'<text x="{LEFT - 8}" y="{at}" dy="4" text-anchor="end" {FONT}>{score:.2f}</text>',
        ]
    parts += [
        f'<text x="{x(step, last):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" '
        f"{FONT}>{step}</text>"
        for step in range(0, last + 1, 500)
    ]
    label = "step (32,768 tokens each); upwards: bits per byte of stories held out of training"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}" {FONT}>{label}</text>')
    return parts


def legend() -> list[str]:
    """Return what the colours mean."""
    meanings = {
        TEACHER: "teachers, 13.4 million parameters each",
        TOGETHER: "the teachers' mean (dashed)",
        STUDENT: "student, 5.4 million parameters",
        TUNE: "the student while it learns to answer",
    }
    return [
        f'<text x="{WIDTH - RIGHT - 8}" y="{TOP + 20 + 20 * row}" text-anchor="end" '
        f'fill="{hue}" {FONT}>{meaning}</text>'
        for row, (hue, meaning) in enumerate(meanings.items())
    ]


def colour(run: str) -> str:
    """Return the colour of a run's curve."""
    return {"student": STUDENT, "tune": TUNE}.get(run, TEACHER)


def x(step: int, last: int) -> float:
    """Return where a step lies."""
    return LEFT + (WIDTH - LEFT - RIGHT) * step / last


def y(score: float) -> float:
    """Return where a score lies."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (HIGH - score) / (HIGH - LOW)


if __name__ == "__main__":
    main()
