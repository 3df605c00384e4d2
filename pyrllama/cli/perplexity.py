"""``rllama perplexity``: how well a model predicts a text, and how far that is from another."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from pyrllama.cli.model import ModelOptions, model_options
from pyrllama.cli.options import PATH
from pyrllama.cli.perplexity_view import progress_bar, report, summary
from pyrllama.cli.prompt import read_text
from pyrllama.cli.terminal import note
from pyrllama.errors import SettingError

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.divergence import Divergence
    from pyrllama.llama import Llama
    from pyrllama.perplexity import Perplexity

    Result = Perplexity | Divergence

EXIT_INTERRUPTED = 130
MAX_TEXT_BYTES = 1 << 30
"""Far over any text that is scored; an endless input such as /dev/zero ends here."""

EPILOG = """\b
Examples:
  rllama perplexity --model-path LLaMA/7B --file wiki.test.raw
  rllama perplexity --model-path model.gguf --file wiki.test.raw --quantize q4_0 --chunks 20
  rllama perplexity --model-path model.Q4_K_M.gguf --kl-divergence model.F16.gguf --file wiki.raw
  rllama perplexity --model-path model.F16.gguf --file wiki.raw --save-logits wiki.logits
  rllama perplexity --model-path model.Q4_K_M.gguf --kl-divergence wiki.logits

The method is llama.cpp's: the text is tokenised once and cut into chunks of the context, each
starts with BOS if the model is trained so, and the second half of each is scored. Perplexities
of models with different vocabularies cannot be compared; bits per byte can. Files of logits are
llama.cpp's as well: either program reads the other's. Ctrl-C ends with the value so far and exit
status 130.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ModelOptions):
    """The command's options as click hands them over."""

    file: Path | None
    kl_divergence: Path | None
    save_logits: Path | None
    context: int | None
    chunks: int | None
    quiet: bool
    as_json: bool

    def load_base(self, *, quiet: bool) -> Llama:
        """Load the model to compare with, its weights as they are stored."""
        as_stored = dataclasses.replace(
            self,
            model_path=self.kl_divergence,
            param_path=None,
            quantize=None,
            f16=False,
            f32=False,
            bf16=False,
        )
        return as_stored.load(max_seq_len=self.context, quiet=quiet)


@click.command(epilog=EPILOG, short_help="Measure how well a model predicts a text.")
@model_options()
@click.option("--file", type=PATH, help="Text in UTF-8; - is standard input.")
@click.option(
    "--kl-divergence",
    type=PATH,
    metavar="BASE",
    help="Compare with another model of the same vocabulary, or with a file of logits, of whose "
    "text --file is then by default.",
)
@click.option("--save-logits", type=PATH, help="Write the logits for a later --kl-divergence.")
@click.option(
    "--context",
    type=int,
    help="Tokens of a chunk.  [default: 512, or the model's context]",
)
@click.option("--chunks", type=int, help="Score only so many chunks.")
@click.option("-q", "--quiet", is_flag=True, help="Print the result alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def perplexity(**values: Any) -> int:
    """Measure how well a model predicts a text: perplexity, and bits per byte.

    With --kl-divergence also how far its predictions are from those of another one: of what a
    quantisation costs this tells more than perplexity alone.
    """
    options = Options(**values)
    if options.kl_divergence is not None and options.save_logits is not None:
        raise SettingError("--save-logits", str(options.save_logits), "left out here")
    saved_context = _context_of_saved(options.kl_divergence)
    text = _text(options, needed=saved_context is None)
    quiet = options.quiet or options.as_json
    with ExitStack() as stack:
        longest = saved_context if options.context is None else options.context
        llama = stack.enter_context(options.load(max_seq_len=longest, quiet=quiet))
        base: Llama | Path | None = options.kl_divergence
        if base is not None and saved_context is None:
            base = stack.enter_context(options.load_base(quiet=quiet))
        started = perf_counter()
        result, status = _score(llama, base, text, options)
        seconds = perf_counter() - started
        if result is None:
            note("no chunk was scored")
        elif options.as_json:
            click.echo(json.dumps(report(llama, result, seconds, options)))
        else:
            click.echo(summary(result))
    return status


def _context_of_saved(base: Path | None) -> int | None:
    """Return the context of a file of logits; None for what is a model."""
    from pyrllama.logits_file import LogitsFile, is_logits_file  # noqa: PLC0415 - start-up time

    if base is None or not is_logits_file(base):
        return None
    with closing(LogitsFile(base)) as file:
        return file.context


def _text(options: Options, *, needed: bool) -> str | None:
    if options.file is not None:
        return read_text(options.file, "text", MAX_TEXT_BYTES)
    if needed:
        raise click.MissingParameter(
            ctx=click.get_current_context(), param_hint="'--file'", param_type="option"
        )
    return None


def _score(
    llama: Llama, base: Llama | Path | None, text: str | None, options: Options
) -> tuple[Result | None, int]:
    """Return the result, or on Ctrl-C the result so far, and the exit status."""
    latest: list[Result] = []
    try:
        with progress_bar(quiet=options.quiet) as show:

            def keep(result: Result) -> None:
                latest[:] = [result]
                show(result)

            chosen = {"context": options.context, "chunks": options.chunks}
            if base is not None:
                llama.divergence(text, base, **chosen, progress=keep)
            else:
                assert text is not None  # noqa: S101 - only saved logits bring a text
                llama.perplexity(text, **chosen, save_logits=options.save_logits, progress=keep)
    except KeyboardInterrupt:
        return (latest[0] if latest else None), EXIT_INTERRUPTED
    return latest[0], 0
