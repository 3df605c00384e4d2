"""``rllama quantize``: any checkpoint as a GGUF file of a named quantisation."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from pyrllama.checkpoints import open_checkpoint
from pyrllama.cli import figures
from pyrllama.cli.inspect_view import new_table
from pyrllama.cli.model import locate
from pyrllama.cli.options import PATH, threads_option
from pyrllama.cli.terminal import note, printable, stderr, stdout
from pyrllama.errors import SettingError
from pyrllama.mixtures import Mixture, parse_mixture
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pyrllama.quantize import Quantisation

EPILOG = f"""\b
Examples:
  rllama quantize LLaMA/7B llama-7b.Q4_K_M.gguf --type Q4_K_M
  rllama quantize hf:meta-llama/Llama-3.2-1B llama.Q6_K.gguf --type Q6_K --imatrix imatrix.gguf
  rllama quantize stories15M.bin stories.gguf --type F16

\b
Types, the most exact first:
  {", ".join(list(Mixture.__members__)[:11])},
  {", ".join(list(Mixture.__members__)[11:])}

F32, F16 and BF16 convert without quantising. The names with _S, _M and _L, and some others, mix
types: the tensors that matter most get more bits, the same ones as in llama.cpp. Scales are
searched for the least squared error, with --imatrix for the least error of what the model
computes. DST is written under a temporary name and takes its own when it is whole.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command's options as click hands them over."""

    source: Path
    destination: Path
    type_name: str
    imatrix: Path | None
    pure: bool
    tokenizer_path: Path | None
    param_path: Path | None
    threads: int | None
    quiet: bool
    as_json: bool


@click.command(epilog=EPILOG, short_help="Convert a checkpoint to GGUF, quantised or not.")
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("destination", metavar="DST", type=PATH)
@click.option("--type", "type_name", required=True, help="Q4_K_M, Q8_0, F16 ...; see below.")
@click.option(
    "--imatrix",
    type=PATH,
    help="Importance matrix, of 'rllama imatrix' or llama.cpp's 'llama-imatrix'.",
)
@click.option("--pure", is_flag=True, help="Give every matrix the same type.")
@click.option(
    "--tokenizer-path",
    "--tokenizer-model",
    type=PATH,
    help="Tokenizer; by default the one inside, beside or above the checkpoint.",
)
@click.option("--param-path", type=PATH, help="params.json; by default the one beside the weights.")
@threads_option("--threads")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def quantize(**values: Any) -> int:
    """Convert a checkpoint to a GGUF file, quantised or not.

    SRC is a file or a folder in any format that can be read, or hf:OWNER/REPO[:FILE or
    quantisation]; DST is the GGUF file.
    """
    options = Options(**values)
    mixture = parse_mixture(options.type_name)
    if options.threads is not None and options.threads < 1:
        raise SettingError("threads", options.threads, "a whole number from 1 upwards")
    started = perf_counter()
    result = _quantize(options, mixture)
    seconds = perf_counter() - started
    if options.as_json:
        click.echo(json.dumps(_report(result, seconds, options)))
    elif not options.quiet:
        _print(result, seconds, options)
    return 0


def _quantize(options: Options, mixture: Mixture) -> Quantisation:
    """Open what is needed and write the file."""
    from pyrllama.importance import read_importance  # noqa: PLC0415 - start-up time
    from pyrllama.quantize import quantize_checkpoint  # noqa: PLC0415
    from pyrllama.tokenizer import find_tokenizer  # noqa: PLC0415

    quiet = options.quiet or options.as_json
    path = locate(options.source, quiet=quiet)
    importance = None if options.imatrix is None else read_importance(options.imatrix)
    with open_checkpoint(path, options.param_path) as checkpoint:
        tokenizer = find_tokenizer(path, options.tokenizer_path, checkpoint.config.vocab_size)
        with progress_bar(quiet=quiet) as progress:
            return quantize_checkpoint(
                checkpoint,
                tokenizer,
                options.destination,
                mixture,
                importance=importance,
                pure=options.pure,
                threads=options.threads,
                progress=progress,
            )


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show a bar with the tensor in work on standard error, where that is a terminal."""
    console = stderr()
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda name, done, total: bar.update(
            task, description=printable(name), completed=done, total=total
        )


def _print(result: Quantisation, seconds: float, options: Options) -> None:
    """Print the table of tensors, and what it comes to."""
    rows = new_table(
        "tensor", shape="right", source="left", type="left", size="right", error="right"
    )
    for tensor in result.tensors:
        rows.add_row(
            Text(printable(tensor.name)),
            " x ".join(map(str, tensor.shape)),
            tensor.source.name,
            tensor.type.name,
            format_bytes(tensor.n_bytes),
            f"{tensor.relative_error:.3%}" if tensor.relative_error else "-",
        )
    stdout().print(rows)
    click.echo(
        f"\n{options.destination}: {result.mixture.name}, {format_bytes(result.n_bytes)}, "
        f"{result.bits_per_weight:.2f} bits a weight, {seconds:.1f} s"
    )
    if result.requantised:
        lost = ", ".join(kind.name for kind in result.requantised)
        note(f"the source was quantised already ({lost}), and the errors add up: start from F16")
    if options.imatrix is not None:
        plain = sum(1 for t in result.tensors if len(t.shape) > 1 and not t.importance)
        if plain:
            note(
                f"{plain} matrices are not in the importance matrix: all their columns count alike"
            )


def _report(result: Quantisation, seconds: float, options: Options) -> dict[str, Any]:
    tensors = [
        {**asdict(tensor), "source": tensor.source.name, "type": tensor.type.name}
        for tensor in result.tensors
    ]
    return {
        "source": str(options.source),
        "destination": str(options.destination),
        "type": result.mixture.name,
        "bytes": result.n_bytes,
        "bits_per_weight": result.bits_per_weight,
        "seconds": seconds,
        "imatrix": None if options.imatrix is None else str(options.imatrix),
        "requantised": [kind.name for kind in result.requantised],
        "tensors": tensors,
        "versions": figures.versions(),
    }
