"""``rllama bench``: how fast a model runs here, beside how fast this memory can be read."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pyrllama.checkpoints import open_checkpoint
from pyrllama.checkpoints.random import SHAPES, RandomCheckpoint
from pyrllama.cli import bench_history, bench_plot, figures
from pyrllama.cli.bench_view import print_report
from pyrllama.cli.bench_work import Bench, Workload, summarise
from pyrllama.cli.model import MODEL_HELP, PACKAGED, locate
from pyrllama.cli.options import (
    PATH,
    QUANTIZE_HELP,
    backend_option,
    chosen_backend,
    memory_option,
    opencl_options,
    threads_option,
)
from pyrllama.cli.terminal import loading_bar, stderr
from pyrllama.core import as_dict
from pyrllama.errors import SettingError
from pyrllama.loading import (
    KV_TYPES,
    WEIGHT_TYPES,
    Backend,
    load_model,
    parse_kv_type,
    parse_weight_type,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl import Device
    from pyrllama.tensors import TensorType

DEFAULT_PROMPT_TOKENS = 512
DEFAULT_SHAPE_TYPE = "q4_0"

EPILOG = """\b
Examples:
  rllama bench --shape 7b --quantize q4_0
  rllama bench --model-path model.gguf --threads 2 --json
  rllama bench --shape 1b --depth 8192 --prompt-tokens 1
  rllama bench --shape 1b --sequences 8
  rllama bench --shape 7b --opencl-device 0
  rllama bench --shape 1b --history speed.jsonl
  rllama bench --history speed.jsonl --plot speed.svg
  rllama bench

GB/s counts the weights that every step reads, and not the KV cache. The share is that of the
best read bandwidth, measured before and after in the same run with the same threads; on OpenCL
devices that of the bandwidth with which the fastest one copies inside its memory.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options as click hands them over."""

    model_path: Path | None
    shape: str | None
    param_path: Path | None
    quantize: str | None
    kv_type: str
    prompt_tokens: int | None
    generate_tokens: int
    depth: int | None
    sequences: int
    repetitions: int
    threads: int | None
    as_json: bool
    check_memory: bool
    backend: str
    history: Path | None
    opencl_devices: tuple[int, ...] | None
    gpu_share: float | None

    def devices(self) -> tuple[Device, ...]:
        """Return the OpenCL devices that the model may run on."""
        if chosen_backend(self.backend, self.opencl_devices, self.gpu_share) != Backend.OPENCL:
            return ()
        from pyrllama import opencl  # noqa: PLC0415 - an optional package

        return opencl.choose_devices(self.opencl_devices)

    def workload(self, config: ModelConfig) -> Workload:
        """Return what is measured; by default the prompt leaves room for the generated tokens.

        Raises ``SettingError`` for counts that are too small or too large for the model.
        """
        prompt_tokens = self.prompt_tokens
        if prompt_tokens is None:
            room = config.context_length - self.generate_tokens
            prompt_tokens = max(1, min(DEFAULT_PROMPT_TOKENS, room))
        depth = prompt_tokens if self.depth is None else self.depth
        workload = Workload(
            prompt_tokens, self.generate_tokens, depth, self.sequences, self.repetitions
        )
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
    "--kv-type",
    type=click.Choice(list(KV_TYPES), case_sensitive=False),
    default="f16",
    show_default=True,
    help="Type of the KV cache.",
)
@click.option(
    "--prompt-tokens",
    type=int,
    help=f"[default: {DEFAULT_PROMPT_TOKENS}, or what the model's context leaves]",
)
@click.option("--generate-tokens", type=int, default=64, show_default=True)
@click.option(
    "-d",
    "--depth",
    type=int,
    help="Tokens in the context when decoding begins.  [default: those of the prompt]",
)
@click.option(
    "--sequences",
    type=int,
    default=1,
    show_default=True,
    help="Sequences that are read and decoded together; rates are their total.",
)
@click.option("--repetitions", type=int, default=5, show_default=True)
@threads_option("--threads", "--max-threads")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--history", type=PATH, help="Append the report to this file too, as one line of JSON."
)
@click.option(
    "--plot",
    type=PATH,
    help="Draw the runs of --history as an SVG file, and measure nothing. Needs matplotlib: "
    "pip install 'pyrllama[plot]'.",
)
@memory_option()
@backend_option()
@opencl_options()[0]
@opencl_options()[1]
def bench(plot: Path | None, **values: Any) -> int:
    """Measure prefill and decode speed, and the share of the memory's bandwidth that it is.

    With --plot draw what was measured before.
    """
    options = Options(**values)
    if plot is not None:
        draw(options.history, plot)
        return 0
    if options.history is not None:
        bench_history.prepare(options.history)
    with open_source(options) as checkpoint:
        report = run(checkpoint, options)
    if options.as_json:
        click.echo(json.dumps(report))
    else:
        print_report(report)
    if options.history is not None:
        bench_history.append(options.history, report)
    return 0


def draw(history: Path | None, plot: Path) -> None:
    """Draw a history; raises ``UsageError`` for any option that asks for a measurement too."""
    context = click.get_current_context()
    if history is None:
        raise click.UsageError("Give the runs to draw: --plot needs --history FILE.", context)
    if history.resolve() == plot.resolve():
        raise click.UsageError("The plot would replace the history: name another file.", context)
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in {"history", "plot"} and source == ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"Leave out {parameter.opts[-1]}: --plot draws a history and measures nothing.",
                context,
            )
    bench_plot.write_plot(bench_history.read(history), plot)


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
    devices, weight_type = options.devices(), options.weight_type
    before = bandwidth_of(devices, threads)
    figures.reset_peak_memory()  # the measurement's own buffer is not the model's
    started = perf_counter()
    with loading_bar(quiet=False) as progress:
        model = load_model(
            checkpoint,
            backend=Backend.OPENCL if devices else options.backend,
            weight_type=weight_type,
            kv_type=parse_kv_type(options.kv_type),
            max_seq_len=workload.cache_tokens,
            threads=threads,
            progress=progress,
            check_memory=options.check_memory,
            opencl_devices=[device.number for device in devices] or None,
            gpu_share=options.gpu_share,
        )
    load_seconds = perf_counter() - started
    with closing(model):
        repetitions = Bench(model, workload).run(say_repetition)
        peak = figures.peak_memory()
    # A device that the model fills has no room to measure in, so it is closed before.
    bandwidth = (before, bandwidth_of(devices, threads))
    return {
        "command": ["rllama", *sys.argv[1:]],
        "source": options.shape or str(options.model_path or PACKAGED),
        "weights": (stored_type(checkpoint) if weight_type is None else weight_type).name,
        "kv_type": options.kv_type,
        "backend": Backend.OPENCL.value if devices else options.backend,
        "threads": threads,
        "workload": asdict(workload),
        "load_seconds": load_seconds,
        **summarise(model, workload, repetitions, bandwidth),
        "peak_memory_bytes": peak,
        "config": as_dict(model.config),
        "machine": cpu.machine() | ({"opencl": "; ".join(map(str, devices))} if devices else {}),
        "versions": figures.versions(),
    }


def bandwidth_of(devices: tuple[Device, ...], threads: int) -> float:
    """Return the bytes a second of the fastest device's memory, or of the threads without one."""
    from pyrllama import cpu  # noqa: PLC0415 - brings LLVM

    if not devices:
        return cpu.read_bandwidth(threads)
    from pyrllama.opencl import bandwidth  # noqa: PLC0415 - an optional package

    return max(map(bandwidth.copy_bandwidth, devices))


def stored_type(checkpoint: Checkpoint) -> TensorType:
    """Return the type in which most of a checkpoint's weights are stored."""
    weights: Counter[TensorType] = Counter()
    for info in checkpoint.tensors.values():
        weights[info.type] += math.prod(info.shape)
    return weights.most_common(1)[0][0]


def say_repetition(number: int) -> None:
    """Say on a terminal which repetition begins."""
    console = stderr()
    if console.is_terminal:
        console.print(f"repetition {number}" if number else "warm-up", style="dim")
