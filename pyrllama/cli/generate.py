"""``rllama generate``, which is also ``rllama`` without a command: a prompt in, its text out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pyrllama.cli import figures
from pyrllama.cli.interactive import (
    InteractiveOptions,
    check_no_prompt,
    converse,
    interactive_options,
)
from pyrllama.cli.model import ModelOptions, model_options
from pyrllama.cli.options import PATH
from pyrllama.cli.prompt import read_prompt
from pyrllama.cli.terminal import PROMPT_STYLE, note, stdout, write
from pyrllama.core import Sampling, as_dict

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.core import Completion
    from pyrllama.llama import Llama, TokenStream

EXIT_INTERRUPTED = 130

EPILOG = """\b
Examples:
  rllama generate --model-path LLaMA/7B --prompt "The meaning of life is"
  rllama generate --model-path model.gguf --prompt "" --temperature 0 -q
  rllama generate --model-path hf:TheBloke/Llama-2-7B-GGUF:Q4_0 --prompt "Snow is"
  git log -1 | rllama generate --model-path LLaMA/7B --prompt-file - --quantize q8_0
  rllama generate --prompt "Once upon a time" --seed 3 --json

Prompt and generated text go to standard output, told apart by colour on a terminal; progress,
figures and errors go to standard error. Ctrl-C ends with the text so far and exit status 130;
an error that you can mend has exit status 2.
"""

PENALTY_HELP = """Multiply the logit of a token by PENALTY^occurrences in the text so far, prompt
included, as the original RLLaMA does: values under 1.0 penalise repetition, values over 1.0
encourage it, 1.0 is off. A negative logit is divided instead, so that a value under 1.0
penalises it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ModelOptions):
    """The command's options as click hands them over."""

    prompt: str | None
    prompt_file: Path | None
    max_seq_len: int | None
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None
    quiet: bool
    as_json: bool

    @property
    def sampling(self) -> Sampling:
        """The settings of the sampler."""
        return Sampling(
            self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.seed
        )


@click.command(epilog=EPILOG, short_help="Continue a prompt (the default).")
@model_options()
@interactive_options()
@click.option("--prompt", help="Text to continue; an empty one starts from the BOS token.")
@click.option(
    "--prompt-file", type=PATH, help="File with the prompt in UTF-8; - is standard input."
)
@click.option(
    "--max-seq-len",
    type=int,
    help="Tokens of prompt and continuation together.  [default: 1024, or the model's context]",
)
@click.option("--max-tokens", type=int, help="Tokens to generate at most.")
@click.option(
    "--temperature", type=float, default=1.0, show_default=True, help="0 takes the likeliest token."
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Keep the likeliest tokens up to this mass; 1 is off.",
)
@click.option(
    "--top-k",
    type=int,
    default=20,
    show_default=True,
    help="Keep this many of the likeliest tokens; 0 is off.",
)
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    show_default=True,
    metavar="PENALTY",
    help=PENALTY_HELP,
)
@click.option("--seed", type=int, help="Reproduces a text exactly; by default a fresh one.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Print the generated text alone: no prompt, no figures."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object at the end: text, tokens, timings, settings, model, versions.",
)
def generate(**values: Any) -> int:
    """Continue a prompt with a model, and print the text as it comes."""
    chat = InteractiveOptions.taken_from(values)
    options = Options(**values)
    if chat.start_interactive:
        return _converse(options, chat)
    prompt = read_prompt(options.prompt, options.prompt_file)
    sampling = options.sampling
    llama = options.load(max_seq_len=options.max_seq_len, quiet=options.quiet or options.as_json)
    with llama:
        stream = llama.stream(prompt, sampling=sampling, max_tokens=options.max_tokens)
        if options.as_json:
            return _print_json(llama, stream, prompt, options)
        return _print_text(llama, stream, prompt, options)


def _converse(options: Options, chat: InteractiveOptions) -> int:
    """Talk with the model as ``--start-interactive`` asks for."""
    check_no_prompt(options.prompt, options.prompt_file)
    settings = chat.settings(as_dict(options.sampling), options.max_tokens)
    with options.load(max_seq_len=options.max_seq_len, quiet=options.quiet) as llama:
        return converse(llama, chat.interactive_system_prompt, settings, quiet=options.quiet)


def _print_text(llama: Llama, stream: TokenStream, prompt: str, options: Options) -> int:
    """Print the tokens as they come, and the figures behind them."""
    console = stdout()
    status = 0
    try:
        if not options.quiet:
            write(console, prompt, PROMPT_STYLE)
        for token in stream:
            write(console, token.text)
    except KeyboardInterrupt:
        stream.close()
        status = EXIT_INTERRUPTED
    write(console, "\n")
    if not options.quiet:
        note(figures.figures_line(stream.completion(), llama.model.decode_bytes))
    return status


def _print_json(llama: Llama, stream: TokenStream, prompt: str, options: Options) -> int:
    """Print everything about the generation as one JSON object."""
    status = 0
    try:
        for _ in stream:
            pass
    except KeyboardInterrupt:
        stream.close()
        status = EXIT_INTERRUPTED
    click.echo(json.dumps(_report(llama, stream.completion(), prompt, options)))
    return status


def _report(llama: Llama, completion: Completion, prompt: str, options: Options) -> dict[str, Any]:
    timings, model = completion.timings, llama.model
    return {
        "prompt": prompt,
        **as_dict(completion),
        "timings": {
            **as_dict(timings),
            "prompt_tokens_per_second": timings.prompt_rate,
            "decode_tokens_per_second": timings.decode_rate,
            "weight_bytes_per_second": timings.decode_rate * model.decode_bytes,
            "peak_memory_bytes": figures.peak_memory(),
        },
        "settings": {
            **as_dict(options.sampling),
            "seed": completion.seed,
            "max_tokens": options.max_tokens,
            "max_seq_len": llama.max_seq_len,
            "threads": options.threads,
            "backend": options.backend,
        },
        "model": {
            "path": options.model_name,
            **as_dict(llama.config),
            "weight_bytes": model.weight_bytes,
        },
        "versions": figures.versions(),
    }
