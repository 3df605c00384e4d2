"""``rllama imatrix``: which columns of a model's matrices matter, for quantising it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from pyrllama.cli import figures
from pyrllama.cli.model import ModelOptions, model_options
from pyrllama.cli.options import PATH
from pyrllama.cli.prompt import read_text
from pyrllama.cli.terminal import note, stderr
from pyrllama.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyrllama.collecting import Collection

MAX_TEXT_BYTES = 1 << 30
"""Far over any text that is read; an endless input such as /dev/zero ends here."""
STANDARD_INPUT = "standard input"

EPILOG = """\b
Examples:
  rllama imatrix --model-path model.F16.gguf --text calibration.txt -o imatrix.gguf
  rllama quantize model.F16.gguf model.Q4_K_M.gguf --type Q4_K_M --imatrix imatrix.gguf

Collect it on the model as it was trained, over some hundred kilobytes of text of the kind that
it will read. The text is cut into chunks of the context as by 'rllama perplexity'. The file is
llama.cpp's GGUF form: 'llama-quantize --imatrix' takes it too.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ModelOptions):
    """The command's options as click hands them over."""

    text: Path
    output: Path
    context: int | None
    chunks: int | None
    process_output: bool
    quiet: bool
    as_json: bool


@click.command(epilog=EPILOG, short_help="Collect an importance matrix for quantising.")
@model_options()
@click.option("--text", type=PATH, required=True, help="Text in UTF-8; - is standard input.")
@click.option("-o", "--output", type=PATH, required=True, help="The GGUF file to write.")
@click.option(
    "--context", type=int, help="Tokens of a chunk.  [default: 512, or the model's context]"
)
@click.option("--chunks", type=int, help="Read only so many chunks.")
@click.option(
    "--process-output",
    is_flag=True,
    help="Collect for the vocabulary projection too, which seldom gains by it.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def imatrix(**values: Any) -> int:
    """Collect an importance matrix: how much each column of the weights matters on a text.

    With it 'rllama quantize --imatrix' spends its precision where the model needs it.
    """
    options = Options(**values)
    text = read_text(options.text, "text", MAX_TEXT_BYTES)
    _check_output(options)
    quiet = options.quiet or options.as_json
    with options.load(max_seq_len=options.context, quiet=quiet) as llama:
        started = perf_counter()
        with progress_bar(quiet=quiet) as show:
            found = llama.collect_importance(
                text,
                context=options.context,
                chunks=options.chunks,
                output=options.process_output,
                progress=show,
            )
        dataset = STANDARD_INPUT if options.text == Path("-") else options.text.name
        found.write(options.output, dataset)
        seconds = perf_counter() - started
    if options.as_json:
        click.echo(json.dumps(_report(found, seconds, options)))
    elif not options.quiet:
        n = len(found.squares.sums)
        click.echo(
            f"{options.output}: importance of {n} matrices from {found.chunks} chunks of "
            f"{found.text.context} tokens, {seconds:.1f} s"
        )
        if found.n_idle:
            note(
                f"{found.n_idle} of {found.n_of_experts} matrices of experts met no token: all "
                f"their columns will count alike; a longer text reaches more of them"
            )
    return 0


def _check_output(options: Options) -> None:
    """Refuse what could not be written, before the work."""
    output = options.output
    if not output.parent.is_dir():
        raise CheckpointError(output, "cannot be written: there is no such folder")
    for source in (options.model_path, options.text):
        if source is not None and output.exists() and source.exists() and output.samefile(source):
            raise CheckpointError(output, "is read as well; name another file to write")


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[Collection], None] | None]:
    """Show a bar of chunks on standard error, where that is a terminal."""
    console = stderr()
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import (  # noqa: PLC0415 - the slowest part of rich to import
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("collecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("collecting", total=None)
        yield lambda found: bar.update(task, completed=found.chunks, total=found.text.count)


def _report(found: Collection, seconds: float, options: Options) -> dict[str, Any]:
    return {
        "output": str(options.output),
        "text": str(options.text),
        "text_tokens": len(found.text.tokens),
        "context": found.text.context,
        "chunks": found.chunks,
        "tokens": found.tokens,
        "matrices": len(found.squares.sums),
        "idle_expert_matrices": found.n_idle,
        "seconds": seconds,
        "model": options.model_name,
        "backend": options.backend,
        "threads": options.threads,
        "versions": figures.versions(),
    }
