"""The commands under ``rllama``; without one of their names it generates."""

from __future__ import annotations

import importlib
from collections import UserDict
from typing import TYPE_CHECKING, Any

import click

from pyrllama import __version__
from pyrllama.cli.terminal import note

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

FIRST_WORDS = "Once upon a time"
"""The prompt of ``rllama`` with nothing behind it."""
_STORY = "pyrllama.story"
"""Key in the context's ``meta``: nothing was given, so a story is told."""

EXAMPLES = """\b
Examples:
  rllama
  rllama --prompt "The dog had a red ball" --seed 3
  rllama --model-path LLaMA/7B --prompt "The meaning of life is"
  rllama --model-path hf:TheBloke/Llama-2-7B-GGUF:Q4_0 --prompt "Snow is"
  rllama --model-path model.gguf --prompt-file story.txt --temperature 0
  rllama --tokenizer-path LLaMA/tokenizer.model --model-path LLaMA/7B \\
         --param-path LLaMA/7B/params.json --f16 --prompt "The meaning of life is"
  rllama inspect model.gguf
  rllama bench --shape 7b --quantize q4_0
  rllama perplexity --model-path model.gguf --file wiki.test.raw
  rllama quantize LLaMA/7B llama-7b.Q4_K_M.gguf --type Q4_K_M
  rllama imatrix --model-path LLaMA/7B --text calibration.txt -o imatrix.gguf
  rllama doctor

Tab completes commands and options after 'rllama completion bash >> ~/.bashrc', or zsh, or fish.
"""


class LazyCommands(UserDict[str, Any]):
    """The commands by name, each imported from the module of its name when it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.data:
            raise KeyError(name)
        command: click.Command = getattr(importlib.import_module(f"pyrllama.cli.{name}"), name)
        return command


COMMANDS = LazyCommands(
    dict.fromkeys(
        (
            "generate",
            "inspect",
            "bench",
            "perplexity",
            "quantize",
            "imatrix",
            "pull",
            "doctor",
            "devices",
            "completion",
        )
    )
)


class DefaultGroup(click.Group):
    """A group that takes options without a command as those of ``generate``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command before an option that is not the group's own."""
        own = {name for option in self.get_params(ctx) for name in option.opts}
        if not args and not ctx.resilient_parsing:
            ctx.meta[_STORY] = True
            args = ["generate", "--prompt", FIRST_WORDS]
        elif args and args[0].startswith("-") and args[0] not in own:
            args = ["generate", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the options of the default command beside the group's own."""
        items = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            generate = COMMANDS["generate"]
            items += generate.shell_complete(click.Context(generate, ctx), incomplete)
        return items


@click.group(
    cls=DefaultGroup,
    commands=COMMANDS,
    epilog=EXAMPLES,
    no_args_is_help=False,
    context_settings={"max_content_width": 100},
)
@click.version_option(__version__, message="rllama %(version)s")
@click.pass_context
def rllama(ctx: click.Context) -> None:
    """Run LLaMA-family language models, from the checkpoint to the text.

    Options without a command are those of 'generate': see 'rllama generate --help'. With
    nothing at all a small model that comes with rllama tells a story.
    """
    if ctx.meta.get(_STORY):
        note(
            f'telling a story from "{FIRST_WORDS}"; yours: rllama --prompt "..."; all that '
            f"it can do: rllama --help"
        )
