r"""Measure what choosing a token costs: the whole chain, each stage alone, and masks of grammars.

    python bench/sampling_speed.py --vocabulary 128256 --rounds 200

Rows are random logits, normal with a standard deviation of 3, behind a text of 4,000 tokens.
Printed are, in milliseconds, the median and the least time of one ``Sampler.sample``, and the
median of the processor's time, which other programs disturb less.  Stages alone see the whole
vocabulary, which behind top-k they never do.  With ``--tokenizer PATH`` the masks of a JSON
schema are measured too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import Sampling
from pyrllama.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT_TOKENS = 4000
SPREAD = 3.0
MOST_TOKENS = 200
FILTERS: dict[str, Any] = {
    "top_n_sigma": 2.0,
    "top_k": 40,
    "typical_p": 0.95,
    "top_p": 0.95,
    "min_p": 0.05,
    "xtc_probability": 0.5,
}
PENALTIES: dict[str, Any] = {
    "repetition_penalty": 0.95,
    "repeat_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "dry_multiplier": 0.8,
}
WHOLE = {**PENALTIES, **FILTERS, "temperature": 0.8}
LLAMA_CPP = "penalties dry top_n_sigma top_k typ_p top_p min_p xtc temperature".split()
SETTINGS: dict[str, dict[str, Any]] = {
    "the defaults: top-k 20": {"top_k": 20},
    "greedy": {"temperature": 0.0},
    "all stages": WHOLE,
    "all stages, in llama.cpp's order": {**WHOLE, "samplers": tuple(LLAMA_CPP)},
    "llama.cpp's defaults": {
        "top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8,
        "samplers": tuple(LLAMA_CPP),
    },
    "no stage": {},
    **{f"{name} alone": {name: value} for name, value in (PENALTIES | FILTERS).items()},
    "temperature alone": {"temperature": 0.8},
    "dynatemp_range alone": {"dynatemp_range": 0.3},
    "mirostat alone": {"mirostat": 2},
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


class Times:
    """Times of repeated work in milliseconds, on the clock and of the processor."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.processor: list[float] = []

    def measure(self, work: Callable[[], object]) -> None:
        """Do some work once and note its times."""
        used, started = time.thread_time(), time.perf_counter()
        work()
        self.clock.append(1000 * (time.perf_counter() - started))
        self.processor.append(1000 * (time.thread_time() - used))

    def report(self, name: str) -> None:
        """Print one line."""
        median, processor = statistics.median(self.clock), statistics.median(self.processor)
        print(f"{name:36} {median:8.3f} {min(self.clock):8.3f} {processor:9.3f}")


def measure_chain(vocabulary: int, rounds: int) -> None:
    """Measure ``sample`` with each of ``SETTINGS``."""
    random = np.random.default_rng(0)
    row = random.normal(0, SPREAD, vocabulary).astype(np.float32)
    text = random.integers(0, vocabulary, TEXT_TOKENS).tolist()
    for name, settings in SETTINGS.items():
        sampler = Sampler(Sampling(**{"top_k": 0, "seed": 1, **settings}), text)
        times = Times()
        for _ in range(rounds):
            times.measure(lambda sampler=sampler: sampler.sample(row))  # type: ignore[misc]
        times.report(name)


def measure_masks(path: Path, rounds: int) -> None:
    """Measure the masks of a JSON schema along random texts that fit it."""
    from pyrllama.structured import Constraint, Vocabulary, read_structure  # noqa: PLC0415
    from pyrllama.tokenizer import load_tokenizer  # noqa: PLC0415

    tokenizer = load_tokenizer(path)
    vocabulary = Vocabulary(tokenizer)
    once = Times()
    once.measure(lambda: vocabulary.library_tokenizer)
    once.report("vocabulary for grammars, once")
    structure = read_structure(json_schema=SCHEMA)
    if structure is None:
        raise SystemExit("the schema states nothing")
    constraint = Constraint(structure, vocabulary, tokenizer.stop_ids)
    random, times = np.random.default_rng(1), Times()
    while len(times.clock) < rounds:
        matcher = constraint.start()
        for _ in range(MOST_TOKENS):
            times.measure(lambda matcher=matcher: matcher.allowed(tokenizer.vocab_size))  # type: ignore[misc]
            token = int(random.choice(np.flatnonzero(matcher.allowed(tokenizer.vocab_size))))
            if token in tokenizer.stop_ids:
                break
            matcher.accept(token)
    times.report("a mask")
    print(f"{'99 of 100 masks are under':36} {np.quantile(times.clock, 0.99):8.3f}")


def main() -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--vocabulary", type=int, default=128_256, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=200, help="calls that are timed")
    parser.add_argument("--tokenizer", type=Path, help="measure masks over this tokenizer too")
    options = parser.parse_args()
    print(f"{'milliseconds':36} {'median':>8} {'least':>8} {'processor':>9}")
    measure_chain(options.vocabulary, options.rounds)
    if options.tokenizer:
        measure_masks(options.tokenizer, options.rounds)


if __name__ == "__main__":
    main()
