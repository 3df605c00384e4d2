"""``rllama perplexity``: how well a model predicts a text."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyrllama.cli import figures
from pyrllama.cli.model import ModelOptions, model_options
from pyrllama.cli.options import PATH
from pyrllama.cli.prompt import read_text
from pyrllama.cli.terminal import note, stderr
from pyrllama.core import as_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pyrllama.llama import Llama
    from pyrllama.perplexity import Perplexity

EXIT_INTERRUPTED = 130
MAX_TEXT_BYTES = 1 << 30
"""Far over any text that is scored; an endless input such as /dev/zero ends here."""

EPILOG = """\b
Examples:
  rllama perplexity --model-path LLaMA/7B --file wiki.test.raw
  rllama perplexity --model-path model.gguf --file wiki.test.raw --quantize q4_0 --chunks 20
  rllama perplexity --file stories.txt --json

The method is llama.cpp's: the text is tokenised once and cut into chunks of the context, each
starts with BOS if the model is trained so, and the second half of each is scored. Perplexities
of models with different vocabularies cannot be compared; bits per byte can. Ctrl-C ends with
the value so far and exit status 130.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ModelOptions):
    """The command's options as click hands them over."""

    file: Path
    context: int | None
    chunks: int | None
    quiet: bool
    as_json: bool


@click.command(epilog=EPILOG, short_help="Measure how well a model predicts a text.")
@model_options()
@click.option("--file", type=PATH, required=True, help="Text in UTF-8; - is standard input.")
@click.option(
    "--context",
    type=int,
    help="Tokens of a chunk.  [default: 512, or the model's context]",
)
@click.option("--chunks", type=int, help="Score only so many chunks.")
@click.option("-q", "--quiet", is_flag=True, help="Print the result alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def perplexity(**values: Any) -> int:
    """Measure how well a model predicts a text: perplexity, and bits per byte."""
    options = Options(**values)
    text = read_text(options.file, "text", MAX_TEXT_BYTES)
    quiet = options.quiet or options.as_json
    with options.load(max_seq_len=options.context, quiet=quiet) as llama:
        started = perf_counter()
        result, status = _score(llama, text, options)
        seconds = perf_counter() - started
        if result is None:
            note("no chunk was scored")
        elif options.as_json:
            click.echo(json.dumps(_report(llama, result, seconds, options)))
        else:
            click.echo(summary(result))
    return status


def _score(llama: Llama, text: str, options: Options) -> tuple[Perplexity | None, int]:
    """Return the result, or on Ctrl-C the result so far, and the exit status."""
    latest: list[Perplexity] = []
    try:
        with progress_bar(quiet=options.quiet) as show:

            def keep(result: Perplexity) -> None:
                latest[:] = [result]
                show(result)

            llama.perplexity(text, context=options.context, chunks=options.chunks, progress=keep)
    except KeyboardInterrupt:
        return (latest[0] if latest else None), EXIT_INTERRUPTED
    return latest[0], 0


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[Perplexity], None]]:
    """Show a bar of chunks with the value so far on standard error, where that is a terminal."""
    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("perplexity", total=None)
        yield lambda result: bar.update(
            task,
            description=f"perplexity {result.perplexity:.4f}",
            completed=result.chunks,
            total=result.of_chunks,
        )


def summary(result: Perplexity) -> str:
    """Return the line that states the result."""
    return (
        f"perplexity {result.perplexity:.4f} +/- {result.standard_error:.4f} | "
        f"{result.nats_per_token:.4f} nats/token | {result.bits_per_byte:.4f} bits/byte | "
        f"{result.chunks} of {result.of_chunks} chunks of {result.context} tokens, "
        f"{result.tokens} scored"
    )


def _report(llama: Llama, result: Perplexity, seconds: float, options: Options) -> dict[str, Any]:
    values = {
        name: getattr(result, name)
        for name in ("perplexity", "standard_error", "nats_per_token", "bits_per_byte")
    }
    weight_type = options.weight_type
    return {
        # JSON has no infinity, which a model without a clue can reach.
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        **as_dict(result),
        "seconds": seconds,
        "file": str(options.file),
        "weights": weight_type.name if weight_type else "as stored",
        "threads": options.threads,
        "backend": options.backend,
        "model": {
            "path": options.model_name,
            **as_dict(llama.config),
            "weight_bytes": llama.model.weight_bytes,
        },
        "versions": figures.versions(),
    }
