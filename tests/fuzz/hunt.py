"""Damages files for as long as it is told and keeps those that do harm.

    python tests/fuzz/hunt.py --minutes 60 --processes 4 --keep found

Every process takes a seed of its own from ``--seed`` on, so that a run can be had again.  What
is kept, a folder for each finding: the files (``case``), which case it was (``case.json``, whose
numbers ``python -m fuzz.worker FOLDER --seed S --first N --count 1`` takes with ``tests`` on the
path), and what happened (``problem.txt``).  The status is 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 2000
"""Cases of one worker: a fresh process does not owe its memory to those before."""


def main() -> None:
    """Hunt as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    seeds = range(arguments.seed, arguments.seed + arguments.processes)
    with ThreadPoolExecutor(arguments.processes) as pool:
        found = sum(pool.map(lambda seed: hunt(seed, end, arguments.keep), seeds))
    sys.exit(1 if found else 0)


def hunt(seed: int, end: float, keep: Path) -> int:
    """Run workers one after the other until the time is over; return the findings."""
    found = first = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while (left := end - time.monotonic()) > 0:
            problems, first = run_worker(folder, seed, first, AT_ONCE, left)
            for number, problem in problems:
                print(f"seed {seed}, case {number}: {problem.strip().splitlines()[-1]}", flush=True)
                keep_case(folder, keep / f"{seed}-{number}", seed, number, problem)
            found += len(problems)
    print(f"seed {seed}: {first} cases, {found} findings", flush=True)
    return found


def run_worker(
    folder: Path, seed: int, first: int, count: int, seconds: float
) -> tuple[list[tuple[int, str]], int]:
    """Run cases in a process; return what it found by number, and the number to go on with.

    A process that dies is a finding of its last case.
    """
    numbers = ["--seed", seed, "--first", first, "--count", count, "--seconds", seconds]
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.worker", folder, *map(str, numbers)],
        capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    problems = [(line["number"], line["problem"]) for line in lines if "problem" in line]
    if done.returncode == 0:
        return problems, lines[-1]["next"]
    case = folder / "case.json"
    if not case.is_file():
        raise SystemExit(done.stderr)
    number = json.loads(case.read_text(encoding="utf-8"))["number"]
    return [*problems, (number, f"{done.stderr}\nstatus {done.returncode}")], number + 1


def keep_case(folder: Path, kept: Path, seed: int, number: int, problem: str) -> None:
    """Run a case again for its files and keep them with what happened."""
    run_worker(folder, seed, number, 1, float("inf"))
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    (kept / "problem.txt").write_text(problem, encoding="utf-8")


if __name__ == "__main__":
    main()
