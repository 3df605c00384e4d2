"""Runs damaged files through the package in a process of its own, watched from outside.

``python -m fuzz.worker FOLDER --seed S --first N --count N`` (with ``tests`` on the path) prints
a line of JSON for each finding.  A crash ends the process by a signal; a case that takes longer
than ``SECONDS`` ends it too, with the stack on standard error; in both cases ``FOLDER/case`` still
has the files, and ``FOLDER/case.json`` says which case it was.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path

from fuzz.exercise import exercise
from fuzz.seeds import Seed, all_seeds

SECONDS = 60
"""Far over what a case takes, a tenth of a second, also on a machine that is busy or paused."""
MEMORY = 128 << 20
"""Bytes over those of a run of whole files that a case may take; the files have under 1 MiB."""


class _EveryBackend(random.Random):
    """Chooses whatever is rare."""

    def random(self) -> float:
        return 0.0


def main() -> None:
    """Run the cases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    warnings.simplefilter("error")
    for seed in all_seeds():  # also compiles what is compiled once
        refused = run_case(seed, dict(seed.files), arguments.folder, _EveryBackend())
        assert refused is None, f"{seed.name}, whole: {refused}"
    bound_memory(MEMORY)
    last = arguments.first
    opened = 0
    for number in range(arguments.first, arguments.first + arguments.count):
        if time.monotonic() > end:
            break
        last = number + 1
        opened += run_number(arguments.folder, arguments.seed, number)
    print(json.dumps({"next": last, "opened": opened}), flush=True)


def run_number(folder: Path, generator: int, number: int) -> bool:
    """Run one case and print what is wrong with it; return whether the files opened."""
    rng = random.Random(f"{generator}/{number}")
    seeds = all_seeds()
    (whole,) = rng.choices(seeds, [seed.weight for seed in seeds])
    files = whole.damaged(rng)
    case = {"seed": generator, "number": number, "of": whole.name}
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    try:
        return run_case(whole, files, folder, rng) is None
    except Exception:
        print(json.dumps({**case, "problem": traceback.format_exc()}), flush=True)
        return False


def run_case(seed: Seed, files: dict[str, bytes], folder: Path, rng: random.Random) -> str | None:
    """Write the files and use them; return what they were refused with, if they were."""
    case, outcome = folder / "case", folder / "outcome"
    for old in (case, outcome):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir(parents=True)
    for name, content in files.items():
        case.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        case.joinpath(name).write_bytes(content)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        return exercise(seed.kind, case / seed.opened, outcome, rng)
    finally:
        faulthandler.cancel_dump_traceback_later()


def bound_memory(extra: int) -> None:
    """Let the process have only ``extra`` bytes more than it has now, where the system can."""
    if sys.platform != "linux":
        return
    import resource  # noqa: PLC0415 - of POSIX alone

    status = Path("/proc/self/status").read_text(encoding="ascii")
    used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + extra,) * 2)


if __name__ == "__main__":
    faulthandler.enable()
    main()
