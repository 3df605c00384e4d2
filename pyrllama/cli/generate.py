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
from pyrllama.cli.reuse_options import ReuseOptions, reuse_options
from pyrllama.cli.sampling_options import SamplingOptions, note_settings, sampling_options
from pyrllama.cli.terminal import PROMPT_STYLE, note, stdout, write
from pyrllama.core import FinishReason, as_dict

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.core import Completion
    from pyrllama.llama import Llama
    from pyrllama.token_stream import TokenStream

EXIT_INTERRUPTED = 130
CUT_OFF = "the text was cut off before it matched its schema or grammar; raise --max-tokens"

EPILOG = """\b
Examples:
  rllama generate --model-path LLaMA/7B --prompt "The meaning of life is"
  rllama generate --model-path model.gguf --prompt "" --temperature 0 -q
  rllama generate --model-path hf:TheBloke/Llama-2-7B-GGUF:Q4_0 --prompt "Snow is"
  git log -1 | rllama generate --model-path LLaMA/7B --prompt-file - --quantize q8_0
  rllama generate --prompt "Once upon a time" --seed 3 --json
  rllama generate --prompt "A name: " --regex "[A-Z][a-z]{2,7}" --n 3 -q

Prompt and generated text go to standard output, told apart by colour on a terminal; progress,
figures and errors go to standard error. Ctrl-C ends with the text so far and exit status 130;
an error that you can mend has exit status 2.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ModelOptions, ReuseOptions):
    """The command's options as click hands them over."""

    prompt: str | None
    prompt_file: Path | None
    max_seq_len: int | None
    max_tokens: int | None
    n: int
    quiet: bool
    verbose: bool
    as_json: bool
    sampling: SamplingOptions


@click.command(epilog=EPILOG, short_help="Continue a prompt (the default).")
@model_options()
@reuse_options()
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
@sampling_options()
@click.option(
    "--n",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Write so many continuations side by side, as far as memory holds their KV cache.",
)
@click.option(
    "-q", "--quiet", is_flag=True, help="Print the generated text alone: no prompt, no figures."
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Say which settings are in force, and who set them."
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
    options = Options(sampling=SamplingOptions.taken_from(values), **values)
    if chat.start_interactive:
        return _converse(options, chat)
    prompt = read_prompt(options.prompt, options.prompt_file)
    settings = options.sampling.settings()
    quiet = options.quiet or options.as_json
    reuse = options.settings(options.chosen_backend, quiet=quiet)
    # What is under 1 is refused with the request.
    text_tokens = None if options.max_tokens is None else max(1, options.max_tokens)
    llama = options.load(
        max_seq_len=options.max_seq_len,
        quiet=quiet,
        texts=options.n,
        text_tokens=text_tokens,
        **reuse,
    )
    with llama:
        if options.verbose:
            note_settings(options.sampling.resolved(llama))
        streams = llama.streams(
            prompt,
            options.n,
            sampling=options.sampling.base,
            max_tokens=options.max_tokens,
            **settings,
        )
        if not quiet:
            _note_turns(llama, prompt, options)
        if options.as_json:
            return _print_json(llama, streams, prompt, options)
        return _print_texts(llama, streams, prompt, options)


def _note_turns(llama: Llama, prompt: str, options: Options) -> None:
    """Say so where the KV cache does not hold all continuations at once."""
    most = llama.most_streams(prompt, max_tokens=options.max_tokens)
    if most < options.n:
        note(
            f"the KV cache holds {most} of {options.n} continuations at their full length side by "
            f"side, so some may wait: lower --max-tokens or --max-seq-len, or take --kv-type q8_0"
        )


def _print_texts(llama: Llama, streams: list[TokenStream], prompt: str, options: Options) -> int:
    """Print the texts one after another; the first as it comes."""
    status = 0
    for i, stream in enumerate(streams, 1):
        if len(streams) > 1 and not options.quiet:
            note(f"continuation {i} of {len(streams)}")
        status = _print_text(llama, stream, prompt, options) or status
        if status:
            break
    return status


def _converse(options: Options, chat: InteractiveOptions) -> int:
    """Talk with the model as ``--start-interactive`` asks for."""
    check_no_prompt(options.prompt, options.prompt_file)
    settings = chat.settings(options.sampling, options.max_tokens)
    reuse = options.settings(options.chosen_backend, quiet=options.quiet)
    with options.load(max_seq_len=options.max_seq_len, quiet=options.quiet, **reuse) as llama:
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
    completion = stream.completion()
    if not completion.complete and completion.finish is FinishReason.LENGTH:
        note(CUT_OFF)
    if not options.quiet:
        note(figures.figures_line(completion, llama.model.decode_bytes))
    return status


def _print_json(llama: Llama, streams: list[TokenStream], prompt: str, options: Options) -> int:
    """Print everything about the generation as one JSON object."""
    status = 0
    try:
        for stream in streams:
            for _ in stream:
                pass
    except KeyboardInterrupt:
        for stream in streams:
            stream.close()
        status = EXIT_INTERRUPTED
    completions = [stream.completion() for stream in streams]
    report = _report(llama, completions[0], prompt, options)
    if len(completions) > 1:
        report["completions"] = [_as_dict(llama, completion) for completion in completions]
    click.echo(json.dumps(report))
    return status


def _as_dict(llama: Llama, completion: Completion) -> dict[str, Any]:
    """Return a completion as plain values, with the texts of the likeliest tokens."""
    values = as_dict(completion)
    n_spelled = llama.tokenizer.vocab_size
    for top in values["top"]:
        top["texts"] = [
            llama.tokenizer.token_bytes(token).decode("utf-8", "replace")
            if token < n_spelled
            else ""
            for token in top["tokens"]
        ]
    return values


def _report(llama: Llama, completion: Completion, prompt: str, options: Options) -> dict[str, Any]:
    timings, model = completion.timings, llama.model
    resolved = options.sampling.resolved(llama)
    return {
        "prompt": prompt,
        **_as_dict(llama, completion),
        "timings": {
            **as_dict(timings),
            "prompt_tokens_per_second": timings.prompt_rate,
            "decode_tokens_per_second": timings.decode_rate,
            "weight_bytes_per_second": timings.decode_rate * model.decode_bytes,
            "peak_memory_bytes": figures.peak_memory(),
        },
        "settings": {
            **as_dict(resolved.sampling),
            "seed": completion.seed,
            "max_tokens": options.max_tokens,
            "max_seq_len": llama.max_seq_len,
            "threads": options.threads,
            "backend": options.backend,
        },
        "sources": dict(resolved.sources),
        "model": {
            "path": options.model_name,
            **as_dict(llama.config),
            "weight_bytes": model.weight_bytes,
        },
        "versions": figures.versions(),
    }
