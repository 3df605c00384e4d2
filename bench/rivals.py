r"""Measure rivals and pyrllama on the same files, in turn, and keep the figures.

    python bench/rivals.py build/bin/llama-bench 1b-q4_0.gguf 1b-q8_0.gguf \
        --work prefill:512 --work decode --work depth:8192 --threads 2

Machines are shared and timings noisy: the programs take turns, ``--rounds`` times each, and
what counts is medians and their ratio.  Every line of the results is one work on one file, with
every program's turns, commands and versions, and the machine.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contenders import Contender, LlamaCpp, Pyrllama, Setup, Transformers, Turn
from programs import ProgramError, run_json_lines
from works import Work, names, parse_work

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_WORK = ("prefill:512", "decode")
RESULTS = Path(__file__).parent / "results" / "rivals.jsonl"
MACHINE = "import json; from pyrllama import cpu; print(json.dumps(cpu.machine()))"


def compare(
    work: Work, model: Path, contenders: Iterable[Contender], rounds: int
) -> dict[str, dict[str, Any]]:
    """Let the programs take turns at a work on a file; return what each did.

    A rival that fails is reported and left out of the rounds that follow.
    """
    turns: dict[str, list[Turn]] = {}
    running = list(contenders)
    for _ in range(rounds):
        for contender in tuple(running):
            try:
                turn = contender.turn(work, model)
            except ProgramError as error:
                if isinstance(contender, Pyrllama):
                    raise
                print(f"{contender.name} is left out: {error}", file=sys.stderr)
                turn = None
            if turn is None:
                running.remove(contender)
            else:
                turns.setdefault(contender.name, []).append(turn)
    return {name: summary(taken) for name, taken in turns.items()}


def summary(turns: list[Turn]) -> dict[str, Any]:
    """Return the median of a program's turns, all of them, and the details of the median one."""
    value = statistics.median(turn.value for turn in turns)
    nearest = min(turns, key=lambda turn: abs(turn.value - value))
    return {
        "value": value,
        "turns": [turn.value for turn in turns],
        "command": [without_folder(word) for word in nearest.command],
        **nearest.details,
    }


def without_folder(word: str) -> str:
    """Return the name of a file for its whole path, which means nothing on another machine."""
    return Path(word).name if Path(word).is_absolute() else word


def work_argument(text: str) -> Work:
    """Return the work that an argument names, or let argparse say what may be named."""
    try:
        return parse_work(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_bench", type=Path, help="llama.cpp's llama-bench")
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files")
    parser.add_argument(
        "--work",
        type=work_argument,
        action="append",
        help=f"one of {names()}; may be given several times [{', '.join(DEFAULT_WORK)}]",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--generate-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program [3]")
    parser.add_argument("--repetitions", type=int, default=3, help="measurements in a turn [3]")
    parser.add_argument(
        "--transformers", type=Path, help="a Python that has torch and transformers"
    )
    parser.add_argument("--rllama", help="this program, to measure another version of it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Compare every work on every file and append the results."""
    options = arguments()
    setup = Setup(options.threads, options.generate_tokens, options.repetitions)
    ours = [options.rllama] if options.rllama else [sys.executable, "-m", "pyrllama"]
    contenders: list[Contender] = [LlamaCpp(options.llama_bench, setup)]
    if options.transformers:
        contenders += [Transformers(options.transformers, t, setup) for t in ("bf16", "f32")]
    contenders.append(Pyrllama(ours, setup))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    try:
        machine = run_json_lines([sys.executable, "-c", MACHINE])[0]
        for model in options.models:
            for work in options.work or map(parse_work, DEFAULT_WORK):
                result = {
                    "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                    "model": model.stem,
                    "work": str(work),
                    "threads": options.threads,
                    "machine": machine,
                    "programs": compare(work, model, contenders, options.rounds),
                }
                line = json.dumps(result)
                print(line, flush=True)
                with options.results.open("a", encoding="utf-8") as results:
                    results.write(line + "\n")
    except ProgramError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
