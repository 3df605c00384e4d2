r"""Measure how decoding slows down where other programs keep the same cores busy.

    python bench/oversubscribed.py --threads 2 --model-path story.gguf --shape 1b

Without a model it takes that of the package and random weights of the 1B shape.  The situations
take turns, ``--rounds`` times each: alone, beside one program that never rests, beside two,
with twice as many threads as asked for, and two models that decode at the same time.  Printed
are medians of tokens per second and what is left of the speed alone, beside what the cores
left would give: ``cores / runnable threads``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyrllama import cpu
from pyrllama.checkpoints import open_checkpoint
from pyrllama.checkpoints.random import SHAPES, RandomCheckpoint
from pyrllama.core import Request, Sampling
from pyrllama.data import default_model_path
from pyrllama.engine import Engine
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.backend import Model
    from pyrllama.checkpoints.base import Checkpoint

CONTEXT = 256
PROMPT = tuple(range(3, 19))
_BUSY = "while True: pass"


class Situation(NamedTuple):
    """What runs at the same time: other programs, threads per thread asked for, models."""

    name: str
    programs: int = 0
    thread_factor: int = 1
    models: int = 1

    def share(self, threads: int, cores: int) -> float:
        """Return what is left to each model of the cores that it has alone."""
        ours = threads * self.thread_factor
        runnable = self.programs + self.models * ours
        alone = min(threads, cores)
        return min(1.0, min(cores * ours / runnable, ours, cores) / alone)


SITUATIONS = (
    Situation("alone"),
    Situation("beside one program", programs=1),
    Situation("beside two programs", programs=2),
    Situation("twice the threads", thread_factor=2),
    Situation("two models", models=2),
)


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Keep programs running that never rest."""
    programs = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def decode(model: Model, seconds: float, rates: list[float]) -> None:
    """Decode for some seconds, again and again to the end of the context; append tokens/s."""
    engine = Engine(model, CONTEXT)
    busy, tokens = 0.0, 0
    while busy < seconds:
        generation = engine.submit(Request(PROMPT, Sampling(temperature=0)))
        engine.step()
        start, given = time.perf_counter(), generation.generated
        while engine.busy and busy + time.perf_counter() - start < seconds:
            engine.step()
        busy += time.perf_counter() - start
        tokens += generation.generated - given
        engine.cancel(generation)
    rates.append(tokens / busy)


def measure(models: list[Model], situation: Situation, seconds: float) -> float:
    """Return the tokens per second of a model in a situation, the mean of those that run."""
    rates: list[float] = []
    with busy_programs(situation.programs):
        threads = [
            threading.Thread(target=decode, args=(model, seconds, rates))
            for model in models[: situation.models]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return statistics.mean(rates)


def load(checkpoint: Checkpoint, threads: int) -> Model:
    """Load a checkpoint's weights with a number of threads."""
    return cpu.load_model(checkpoint, max_seq_len=CONTEXT, threads=threads)


def report(name: str, checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Measure a model in every situation and print a table."""
    models = [load(checkpoint, options.threads) for _ in range(2)]
    doubled = load(checkpoint, 2 * options.threads)
    rates: dict[Situation, list[float]] = {situation: [] for situation in SITUATIONS}
    for _ in range(options.rounds):
        for situation, measured in rates.items():
            chosen = models if situation.thread_factor == 1 else [doubled]
            measured.append(measure(chosen, situation, options.seconds))
    for model in (*models, doubled):
        model.close()
    cores = len(os.sched_getaffinity(0))
    alone = statistics.median(rates[SITUATIONS[0]])
    print(f"{name}, {options.threads} threads on {cores} cores")
    for situation, measured in rates.items():
        rate = statistics.median(measured)
        share = situation.share(options.threads, cores)
        print(f"  {situation.name:20} {rate:8.1f} tokens/s  {rate / alone:5.0%} of {share:4.0%}")


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=cpu.default_threads())
    parser.add_argument("--model-path", type=Path, action="append", default=[])
    parser.add_argument("--shape", choices=list(SHAPES), action="append", default=[])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not options.model_path and not options.shape:
        options.model_path, options.shape = [default_model_path()], ["1b"]
    for path in options.model_path:
        with open_checkpoint(path) as checkpoint:
            report(path.name, checkpoint, options)
    for shape in options.shape:
        report(shape, RandomCheckpoint(SHAPES[shape], TensorType.Q4_0), options)


if __name__ == "__main__":
    main()
