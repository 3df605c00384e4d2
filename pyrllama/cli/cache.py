"""``rllama cache``: what prompts are kept on disk, and removing them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click
from rich.table import Table

from pyrllama.cli.reuse_options import cache_folder_option
from pyrllama.cli.terminal import printable, stdout
from pyrllama.core import BLOCK_TOKENS, as_dict
from pyrllama.errors import CacheFolderError
from pyrllama.prompt_folder import clear as clear_folder
from pyrllama.prompt_folder import default_folder, stored_models
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.prompt_folder import StoredModel

EPILOG = """\b
Examples:
  rllama cache list
  rllama cache list --json
  rllama cache clear
  rllama cache clear --prompt-cache /mnt/prompts
"""
UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"))
UNKNOWN = "unknown model"


@click.group(epilog=EPILOG, short_help="List or remove the prompts that are kept on disk.")
def cache() -> None:
    """List or remove the prompts that are kept on disk for later runs."""


@cache.command("list")
@cache_folder_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_prompts(prompt_cache: Path | None, *, as_json: bool) -> int:
    """List the models with prompts on disk: tokens, sizes, and when they were used."""
    folder = prompt_cache or default_folder()
    try:
        models = stored_models(folder)
    except OSError as error:
        raise CacheFolderError(folder, f"cannot be read ({error.strerror})") from error
    if as_json:
        click.echo(json.dumps(_report(folder, models)))
        return 0
    console = stdout()
    total = sum(model.bytes for model in models)
    console.print(f"{printable(str(folder))}: {format_bytes(total)}", soft_wrap=True)
    if models:
        console.print(_table(models))
    return 0


@cache.command("clear")
@cache_folder_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def clear_prompts(prompt_cache: Path | None, *, as_json: bool) -> int:
    """Remove all prompts from the disk; files of others in the folder stay."""
    folder = prompt_cache or default_folder()
    try:
        removed = clear_folder(folder)
    except OSError as error:
        raise CacheFolderError(folder, f"cannot be cleared ({error.strerror})") from error
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "removed_bytes": removed}))
    else:
        stdout().print(f"removed {format_bytes(removed)} from {folder}", soft_wrap=True)
    return 0


def _report(folder: Path, models: list[StoredModel]) -> dict[str, object]:
    rows = [as_dict(model) | {"tokens": model.blocks * BLOCK_TOKENS} for model in models]
    return {"folder": str(folder), "bytes": sum(model.bytes for model in models), "models": rows}


def _table(models: list[StoredModel]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("model", "weights"):
        table.add_column(name, overflow="fold")
    for name in ("tokens", "size", "oldest use", "latest use"):
        table.add_column(name, justify="right", no_wrap=True)
    now = time.time()
    for model in models:
        table.add_row(
            printable(str(model.label.get("model", UNKNOWN))),
            printable(str(model.label.get("weights", ""))),
            str(model.blocks * BLOCK_TOKENS),
            format_bytes(model.bytes),
            age(now - model.oldest_use),
            age(now - model.latest_use),
        )
    return table


def age(seconds: float) -> str:
    """Return how long ago something was, in its largest whole unit."""
    for size, unit in UNITS:
        count = int(seconds // size)
        if count > 0:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
