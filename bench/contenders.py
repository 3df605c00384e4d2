"""The programs that are compared, and how each does every kind of work.

Of a rival's ways to do the same work - with and without its flash attention - the better one
counts, in every turn anew.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from programs import ProgramError, run, run_json_lines
from works import Kind, Work

from pyrllama.checkpoints import open_checkpoint
from pyrllama.core import as_dict
from pyrllama.models.llama import OUTPUT

PROMPT = "hi"
"""The prompt of the command whose first token is waited for."""
CONTEXT = 1024
"""Tokens of context of that command, which decide how large a KV cache is."""
SEQUENCE_PROMPT = 32
"""Tokens that every sequence has in its context before several are decoded together."""
TRANSFORMERS_SCRIPT = Path(__file__).with_name("transformers_speed.py")


@dataclass(frozen=True, slots=True)
class Setup:
    """What all programs are given alike."""

    threads: int
    generate_tokens: int
    repetitions: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a program: its figure, the command, and what else is worth keeping."""

    value: float
    command: list[str]
    details: dict[str, Any] = field(default_factory=dict)


class Contender(Protocol):
    """A program that is measured."""

    name: str

    def turn(self, work: Work, model: Path) -> Turn | None:
        """Do a work once; None if this program does not take part in it."""
        ...


class LlamaCpp:
    """llama.cpp, through the programs that lie beside its ``llama-bench``."""

    name = "llama.cpp"

    def __init__(self, llama_bench: Path, setup: Setup) -> None:
        self._bench, self._setup = llama_bench, setup

    def turn(self, work: Work, model: Path) -> Turn:
        """Do a work once."""
        if work.kind is Kind.SEQUENCES:
            return self._sequences(work.n, model)
        if work.kind in {Kind.START, Kind.MEMORY}:
            return self._first_token(work.kind, model)
        return self._bench_turn(work, model)

    def _bench_turn(self, work: Work, model: Path) -> Turn:
        setup = self._setup
        prompt = work.n if work.kind is Kind.PREFILL else 0
        generate = 0 if work.kind is Kind.PREFILL else setup.generate_tokens
        command = [str(self._bench), "-m", str(model), "-t", str(setup.threads), "-o", "jsonl"]
        command += ["-p", str(prompt), "-n", str(generate), "-r", str(setup.repetitions)]
        command += ["-fa", "0,1"]
        if work.kind is Kind.DEPTH:
            command += ["-d", str(work.n)]
        return max(
            (
                Turn(
                    statistics.median(found["samples_ts"]),
                    command,
                    {"version": found["build_commit"], "flash_attention": found["flash_attn"]},
                )
                for found in run_json_lines(command)
            ),
            key=lambda turn: turn.value,
        )

    def _sequences(self, n: int, model: Path) -> Turn:
        setup = self._setup
        length = SEQUENCE_PROMPT + setup.generate_tokens
        program = self._bench.with_name("llama-batched-bench")
        command = [str(program), "-m", str(model), "-t", str(setup.threads)]
        command += ["-npp", str(SEQUENCE_PROMPT), "-ntg", str(setup.generate_tokens)]
        command += ["-npl", str(n), "-c", str(n * length), "--output-format", "jsonl"]
        turns = []
        for flash_attention in ("off", "on"):
            tried = [*command, "-fa", flash_attention]
            rates = [run_json_lines(tried)[-1]["speed_tg"] for _ in range(setup.repetitions)]
            details = {"flash_attention": int(flash_attention == "on")}
            turns.append(Turn(statistics.median(rates), tried, details))
        return max(turns, key=lambda turn: turn.value)

    def _first_token(self, kind: Kind, model: Path) -> Turn:
        setup = self._setup
        program = self._bench.with_name("llama-completion")
        command = [str(program), "-m", str(model), "-t", str(setup.threads), "-c", str(CONTEXT)]
        command += ["-p", PROMPT, "-n", "1", "-no-cnv", "--no-warmup", "--temp", "0"]
        return first_token(kind, command, setup.repetitions)


def first_token(kind: Kind, command: list[str], repetitions: int) -> Turn:
    """Return the median of what a command takes that gives one token: seconds or bytes."""
    runs = [run(command) for _ in range(repetitions)]
    taken = [each.seconds if kind is Kind.START else each.peak_bytes for each in runs]
    return Turn(statistics.median(taken), command)


class Pyrllama:
    """This program; ``program`` is the command that starts it."""

    name = "pyrllama"

    def __init__(self, program: list[str], setup: Setup) -> None:
        self._program, self._setup = program, setup

    def turn(self, work: Work, model: Path) -> Turn:
        """Do a work once."""
        setup = self._setup
        threads = ["--max-threads", str(setup.threads)]
        if work.kind in {Kind.START, Kind.MEMORY}:
            command = [*self._program, "generate", "--model-path", str(model), *threads]
            command += ["--prompt", PROMPT, "--max-tokens", "1", "--temperature", "0"]
            command += ["--max-seq-len", str(CONTEXT)]
            return first_token(work.kind, command, setup.repetitions)
        command = [*self._program, "bench", "--model-path", str(model), *threads, "--json"]
        command += ["--repetitions", str(setup.repetitions), *self._counts(work)]
        report = run_json_lines(command)[-1]
        rate = "prefill" if work.kind is Kind.PREFILL else "decode"
        details = {"versions": report["versions"]}
        if work.kind is not Kind.PREFILL:
            details["gigabytes_per_second"] = report["gigabytes_per_second"]
            details["share_of_bandwidth"] = report["share_of_bandwidth"]
            details["bandwidth"] = max(report["read_bandwidth_gigabytes_per_second"].values())
        return Turn(report[f"{rate}_tokens_per_second"]["median"], command, details)

    def _counts(self, work: Work) -> list[str]:
        """Return the options that make a run of ``rllama bench`` this work and little else."""
        prompt, generate, depth, sequences = 1, self._setup.generate_tokens, 0, 1
        match work.kind:
            case Kind.PREFILL:
                prompt, generate = work.n, 1
            case Kind.DEPTH:
                depth = work.n
            case Kind.SEQUENCES:
                depth, sequences = SEQUENCE_PROMPT, work.n
        counts = {"prompt-tokens": prompt, "generate-tokens": generate, "depth": depth}
        counts["sequences"] = sequences
        return [word for name, n in counts.items() for word in (f"--{name}", str(n))]


class Transformers:
    """transformers with PyTorch on random weights of the same shape, in one of its types."""

    def __init__(self, python: Path, dtype: str, setup: Setup) -> None:
        self.name = f"transformers {dtype}"
        self._python, self._dtype, self._setup = python, dtype, setup

    def turn(self, work: Work, model: Path) -> Turn | None:
        """Do a work once; it takes part in prefill and decode only."""
        if work.kind not in {Kind.PREFILL, Kind.DECODE}:
            return None
        with open_checkpoint(model) as checkpoint:
            shape = as_dict(checkpoint.config) | {"tied": OUTPUT not in checkpoint.tensors}
        setup = self._setup
        command = [str(self._python), str(TRANSFORMERS_SCRIPT), json.dumps(shape)]
        command += ["--dtype", self._dtype, "--threads", str(setup.threads)]
        command += ["--repetitions", str(setup.repetitions)]
        if work.kind is Kind.PREFILL:
            command += ["--prompt-tokens", str(work.n)]
        else:
            command += ["--generate-tokens", str(setup.generate_tokens)]
        found = run_json_lines(command)[-1]
        return Turn(statistics.median(found["samples"]), command, {"version": found["version"]})


__all__ = ["Contender", "LlamaCpp", "ProgramError", "Pyrllama", "Setup", "Transformers", "Turn"]
