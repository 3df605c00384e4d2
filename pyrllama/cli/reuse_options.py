"""The options that save computing: the prompt cache, and speculation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pyrllama.cli.options import PATH
from pyrllama.cli.terminal import note
from pyrllama.loading import Backend
from pyrllama.prompt_folder import default_folder
from pyrllama.prompt_store import DEFAULT_BYTES, MIN_TOKENS
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyrllama.cli.options import Decorator

CACHE_VARIABLE = "RLLAMA_PROMPT_CACHE"
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ReuseOptions:
    """The options of ``reuse_options`` as click hands them over.

    It has no slots, so that a command's options can inherit from it and from others.
    """

    prompt_cache: Path | None
    no_prompt_cache: bool
    prompt_cache_gib: float
    lookup: bool
    draft_model: Path | None

    def settings(self, backend: str, *, quiet: bool) -> dict[str, Any]:
        """Return them as arguments of ``load``.

        Without a folder prompts are kept in the default one, but only of the CPU: a GPU computes
        most prompts sooner than a disk gives them.
        """
        folder = self.prompt_cache
        if folder is None and backend == Backend.CPU:
            folder = default_folder()
        return {
            "prompt_cache": None if self.no_prompt_cache else folder,
            "prompt_cache_bytes": int(self.prompt_cache_gib * GIB),
            "lookup": self.lookup,
            "draft_model": self.draft_model,
            "on_note": None if quiet else note,
        }


def cache_folder_option() -> Decorator:
    """Return the option that names the folder of the prompt cache."""
    return click.option(
        "--prompt-cache",
        type=PATH,
        metavar="DIR",
        envvar=CACHE_VARIABLE,
        show_envvar=True,
        help=f"Folder in which prompts of {MIN_TOKENS} tokens and more are kept for later runs.  "
        f"[default: one in the user's cache folder; see 'rllama cache list']",
    )


def reuse_options() -> Decorator:
    """Return the options of ``ReuseOptions``."""
    options = (
        cache_folder_option(),
        click.option("--no-prompt-cache", is_flag=True, help="Neither read nor keep prompts."),
        click.option(
            "--prompt-cache-size",
            "prompt_cache_gib",
            type=click.FloatRange(min=0, min_open=True),
            default=DEFAULT_BYTES / GIB,
            metavar="GIB",
            help=f"Bound on the folder's size in GiB; what was unused for longest goes first.  "
            f"[default: {format_bytes(DEFAULT_BYTES)}]",
        ),
        click.option(
            "--lookup",
            is_flag=True,
            help="Draft tokens from what the text repeats and check several in one step: faster "
            "where it quotes its prompt, and the same text.",
        ),
        click.option(
            "--draft-model",
            type=PATH,
            help="Smaller model of the same vocabulary that drafts tokens, to check several in "
            "one step; the text is the same.",
        ),
    )

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
