"""``rllama pull``: fetch a model from the Hugging Face hub into its cache."""

from __future__ import annotations

import click

from pyrllama.cli.terminal import note

EPILOG = """\b
Examples:
  rllama pull TheBloke/Llama-2-7B-GGUF:Q4_0
  rllama pull TheBloke/Llama-2-7B-GGUF:llama-2-7b.Q8_0.gguf
  rllama pull meta-llama/Llama-3.2-1B
  rllama generate --model-path "$(rllama pull TheBloke/Llama-2-7B-GGUF:Q4_0)" --prompt "Snow is"

Without a file or a quantisation the best GGUF file that runs is taken - Q8_0, F16, BF16, Q4_0,
F32, in this order - or else the checkpoint of transformers, or else Meta's own files. What is
in the cache already is not fetched again, and every file is compared with the hub's SHA-256.

\b
Environment:
  HF_TOKEN        token for private and gated repositories ('hf auth login' keeps one)
  HF_HOME         where the cache is
  HF_HUB_OFFLINE  1 never asks the hub and takes what the cache has
  HF_ENDPOINT     another hub
"""


@click.command(epilog=EPILOG, short_help="Fetch a model from the Hugging Face hub.")
@click.argument("model", metavar="OWNER/REPO[@REVISION][:FILE|:QUANTISATION]")
@click.option("-q", "--quiet", is_flag=True, help="Print the path alone: no bars, no hint.")
def pull(model: str, quiet: bool) -> int:
    """Fetch a model from the Hugging Face hub and print where it is.

    Every command takes the same name behind --model-path hf: and pulls by itself.
    """
    from pyrllama import hub  # noqa: PLC0415 - start-up time

    path = hub.pull(hub.parse_reference(model), progress=not quiet)
    click.echo(str(path))
    if not quiet:
        name = hub.PREFIX + model.removeprefix(hub.PREFIX)
        note(f'run it with: rllama --model-path {name} --prompt "..."')
    return 0
