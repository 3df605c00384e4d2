"""``rllama bench``: how fast a model runs here, beside how fast this memory can be read."""

from __future__ import annotations

import json
import statistics
import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pyrllama.checkpoints import open_checkpoint
from pyrllama.checkpoints.random import SHAPES, RandomCheckpoint
from pyrllama.cli import figures
from pyrllama.cli.bench_view import print_report
from pyrllama.cli.model import MODEL_HELP, PACKAGED, locate
from pyrllama.cli.options import (
    PATH,
    QUANTIZE_HELP,
    backend_option,
    memory_option,
    threads_option,
)
from pyrllama.cli.terminal import loading_bar, stderr
from pyrllama.core import Request, Sampling, as_dict
from pyrllama.engine import Engine
from pyrllama.errors import SettingError
from pyrllama.loading import WEIGHT_TYPES, load_model, parse_weight_type

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.core import ModelConfig, TensorType, Timings
    from pyrllama.engine import Model

SEED = 0
WARM_UP_TOKENS = 2
DEFAULT_PROMPT_TOKENS = 512
DEFAULT_SHAPE_TYPE = "q4_0"

EPILOG = """\b
Examples:
  rllama bench --shape 7b --quantize q4_0
  rllama bench --model-path model.gguf --threads 2 --json
  rllama bench

GB/s counts the weights that every decoded token reads, and not the KV cache. The share is that
of the best read bandwidth, measured before and after in the same run with the same threads.
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured: every repetition reads a prompt and then decodes greedily."""

    prompt_tokens: int
    generate_tokens: int
    repetitions: int

    def check(self, config: ModelConfig) -> None:
        """Raise ``SettingError`` for a count that is too small, or a context too short."""
        if self.prompt_tokens < 1:
            raise SettingError("prompt-tokens", self.prompt_tokens, "1 or more")
        if self.generate_tokens < 2:
            raise SettingError("generate-tokens", self.generate_tokens, "2 or more")
        if self.repetitions < 1:
            raise SettingError("repetitions", self.repetitions, "1 or more")
        if self.max_seq_len > config.context_length:
            raise SettingError(
                "prompt-tokens + generate-tokens",
                self.max_seq_len,
                f"at most the model's context of {config.context_length}",
            )

    @property
    def max_seq_len(self) -> int:
        """Tokens of a whole repetition."""
        return self.prompt_tokens + self.generate_tokens


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options as click hands them over."""

    model_path: Path | None
    shape: str | None
    param_path: Path | None
    quantize: str | None
    prompt_tokens: int | None
    generate_tokens: int
    repetitions: int
    threads: int | None
    as_json: bool
    check_memory: bool
    backend: str

    def workload(self, config: ModelConfig) -> Workload:
        """Return what is measured; by default the prompt leaves room for the generated tokens.

        Raises ``SettingError`` for counts that are too small or too large for the model.
        """
        prompt_tokens = self.prompt_tokens
        if prompt_tokens is None:
            room = config.context_length - self.generate_tokens
            prompt_tokens = max(1, min(DEFAULT_PROMPT_TOKENS, room))
        workload = Workload(prompt_tokens, self.generate_tokens, self.repetitions)
        workload.check(config)
        return workload

    @property
    def weight_type(self) -> TensorType | None:
        """The type to convert to, or to make random weights in; None keeps the checkpoint's."""
        default = None if self.shape is None else DEFAULT_SHAPE_TYPE
        return parse_weight_type(self.quantize or default)


@click.command(epilog=EPILOG, short_help="Measure how fast a model runs here.")
@click.option("--model-path", type=PATH, help=MODEL_HELP)
@click.option(
    "--shape",
    type=click.Choice(list(SHAPES)),
    help="Measure random weights of this shape instead: speed does not depend on the values.",
)
@click.option("--param-path", type=PATH, help="params.json; by default the one beside the weights.")
@click.option(
    "--quantize",
    type=click.Choice(list(WEIGHT_TYPES), case_sensitive=False),
    help=f"{QUANTIZE_HELP} With --shape the default is {DEFAULT_SHAPE_TYPE}.",
)
@click.option(
    "--prompt-tokens",
    type=int,
    help=f"[default: {DEFAULT_PROMPT_TOKENS}, or what the model's context leaves]",
)
@click.option("--generate-tokens", type=int, default=64, show_default=True)
@click.option("--repetitions", type=int, default=5, show_default=True)
@threads_option("--threads", "--max-threads")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@memory_option()
@backend_option()
def bench(**values: Any) -> int:
    """Measure prefill and decode speed, and the share of the memory's bandwidth that it is."""
    options = Options(**values)
    with open_source(options) as checkpoint:
        report = run(checkpoint, options)
    if options.as_json:
        click.echo(json.dumps(report))
    else:
        print_report(report)
    return 0


def open_source(options: Options) -> Checkpoint:
    """Open the checkpoint, or make one of random weights, that is to be measured."""
    if options.shape is None:
        return open_checkpoint(
            locate(options.model_path, quiet=options.as_json), options.param_path
        )
    if options.model_path is not None:
        raise click.UsageError("Give either --model-path PATH or --shape NAME.")
    weight_type = options.weight_type
    assert weight_type is not None  # noqa: S101 - a shape has a default
    return RandomCheckpoint(SHAPES[options.shape], weight_type)


def run(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """Measure a checkpoint and return the whole report as plain values."""
    from pyrllama import cpu  # noqa: PLC0415 - brings LLVM

    workload = options.workload(checkpoint.config)
    threads = cpu.default_threads() if options.threads is None else options.threads
    if threads < 1:
        raise SettingError("threads", threads, "1 or more")
    before = cpu.read_bandwidth(threads)
    figures.reset_peak_memory()  # the measurement's own buffer is not the model's
    started = perf_counter()
    with loading_bar(quiet=False) as progress:
        model = load_model(
            checkpoint,
            backend=options.backend,
            weight_type=options.weight_type,
            max_seq_len=workload.max_seq_len,
            threads=threads,
            progress=progress,
            check_memory=options.check_memory,
        )
    load_seconds = perf_counter() - started
    with closing(model):
        timings = measure(model, workload)
        peak = figures.peak_memory()
        bandwidth = (before, cpu.read_bandwidth(threads))
        return {
            "command": ["rllama", *sys.argv[1:]],
            "source": options.shape or str(options.model_path or PACKAGED),
            "weights": options.weight_type.name if options.weight_type else "as stored",
            "backend": options.backend,
            "threads": threads,
            "workload": asdict(workload),
            "load_seconds": load_seconds,
            **summarise(model, workload, timings, bandwidth),
            "peak_memory_bytes": peak,
            "config": as_dict(model.config),
            "machine": cpu.machine(),
            "versions": figures.versions(),
        }


def measure(model: Model, workload: Workload) -> list[Timings]:
    """Run the workload and return the timings of every repetition, a warm-up apart."""
    generator = np.random.default_rng(SEED)
    greedy = Sampling(temperature=0)
    engine = Engine(model, workload.max_seq_len)  # without stop ids: every run is as long
    console = stderr()
    timings = []
    for repetition in range(workload.repetitions + 1):
        warm_up = repetition == 0
        count = WARM_UP_TOKENS if warm_up else workload.generate_tokens
        if console.is_terminal:
            name = "warm-up" if warm_up else f"repetition {repetition} of {workload.repetitions}"
            console.print(name, style="dim")
        prompt = generator.integers(model.config.vocab_size, size=workload.prompt_tokens)
        generation = engine.submit(Request(tuple(prompt.tolist()), greedy, count))
        while engine.busy:
            engine.step()
        if not warm_up:
            timings.append(generation.timings)
    return timings


def summarise(
    model: Model,
    workload: Workload,
    timings: list[Timings],
    bandwidth: tuple[float, float],
) -> dict[str, Any]:
    """Return rates, bytes and the share of the bandwidth; bandwidths are in bytes a second."""
    decode = _spread([timing.decode_rate for timing in timings])
    bytes_per_second = decode["median"] * model.decode_bytes
    mean_context = workload.prompt_tokens + workload.generate_tokens / 2
    return {
        "prefill_tokens_per_second": _spread([timing.prompt_rate for timing in timings]),
        "decode_tokens_per_second": decode,
        "first_token_seconds": statistics.median(timing.prompt_seconds for timing in timings),
        "weight_bytes": model.weight_bytes,
        "bytes_per_token": model.decode_bytes,
        "kv_cache_bytes_per_token": int(mean_context * model.kv_bytes_per_token),
        "gigabytes_per_second": bytes_per_second / 1e9,
        "read_bandwidth_gigabytes_per_second": {
            "before": bandwidth[0] / 1e9,
            "after": bandwidth[1] / 1e9,
        },
        "share_of_bandwidth": bytes_per_second / max(bandwidth),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
