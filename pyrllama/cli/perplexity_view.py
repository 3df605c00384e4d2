"""What ``rllama perplexity`` shows: the bar, the result in words, and as JSON."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyrllama.cli import figures
from pyrllama.cli.terminal import stderr
from pyrllama.core import as_dict
from pyrllama.perplexity import Perplexity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyrllama.cli.perplexity import Options, Result
    from pyrllama.divergence import Divergence
    from pyrllama.llama import Llama


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[Result], None]]:
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

        def show(result: Result) -> None:
            scored = result if isinstance(result, Perplexity) else result.model
            bar.update(
                task, description=_short(result), completed=scored.chunks, total=scored.of_chunks
            )

        yield show


def _short(result: Result) -> str:
    if isinstance(result, Perplexity):
        return f"perplexity {result.perplexity:.4f}"
    return f"KL divergence {result.mean:.6f}"


def summary(result: Result) -> str:
    """Return the lines that state the result."""
    if isinstance(result, Perplexity):
        return f"{_perplexity(result)} | {_extent(result)}"
    return "\n".join(
        (
            _perplexity(result.model),
            f"base {_perplexity(result.base)}",
            f"perplexity ratio {result.ratio:.6f} +/- {result.ratio_standard_error:.6f} | same "
            f"top token {result.same_top_share:.3%} +/- {result.same_top_standard_error:.3%}",
            f"KL divergence {result.mean:.6f} +/- {result.standard_error:.6f} | median "
            f"{result.quantile(0.5):.6f} | 99 % {result.quantile(0.99):.6f} | maximum "
            f"{result.maximum:.6f}",
            _extent(result.model),
        )
    )


def _perplexity(result: Perplexity) -> str:
    return (
        f"perplexity {result.perplexity:.4f} +/- {result.standard_error:.4f} | "
        f"{result.nats_per_token:.4f} nats/token | {result.bits_per_byte:.4f} bits/byte"
    )


def _extent(result: Perplexity) -> str:
    return (
        f"{result.chunks} of {result.of_chunks} chunks of {result.context} tokens, "
        f"{result.tokens} scored"
    )


def report(llama: Llama, result: Result, seconds: float, options: Options) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    if isinstance(result, Perplexity):
        scored, compared = result, {}
    else:
        scored, compared = result.model, {"kl_divergence": _finite(_divergence(result, options))}
    weight_type = options.weight_type
    return {
        **_finite(_values(scored)),
        **as_dict(scored),
        **compared,
        "seconds": seconds,
        "file": None if options.file is None else str(options.file),
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


def _values(result: Perplexity) -> dict[str, float]:
    names = ("perplexity", "standard_error", "nats_per_token", "bits_per_byte")
    return {name: getattr(result, name) for name in names}


def _divergence(result: Divergence, options: Options) -> dict[str, Any]:
    return {
        "base": str(options.kl_divergence),
        "mean": result.mean,
        "standard_error": result.standard_error,
        "median": result.quantile(0.5),
        "percentile_99": result.quantile(0.99),
        "maximum": result.maximum,
        "same_top": result.same_top_share,
        "same_top_standard_error": result.same_top_standard_error,
        "base_perplexity": result.base.perplexity,
        "base_standard_error": result.base.standard_error,
        "perplexity_ratio": result.ratio,
        "perplexity_ratio_standard_error": result.ratio_standard_error,
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Replace infinities, which a model without a clue can reach and JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
