"""The commands under ``rllama``; without one of their names it generates."""

from __future__ import annotations

import click

from pyrllama import __version__
from pyrllama.cli.bench import bench
from pyrllama.cli.generate import generate
from pyrllama.cli.inspect import inspect

EXAMPLES = """\b
Examples:
  rllama --model-path LLaMA/7B --prompt "The meaning of life is"
  rllama --model-path model.gguf --prompt-file story.txt --temperature 0
  rllama --tokenizer-path LLaMA/tokenizer.model --model-path LLaMA/7B \\
         --param-path LLaMA/7B/params.json --f16 --prompt "The meaning of life is"
  rllama inspect model.gguf
  rllama bench --shape 7b --quantize q4_0
"""


class DefaultGroup(click.Group):
    """A group that takes options without a command as those of ``generate``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command before an option that is not the group's own."""
        own = {name for option in self.get_params(ctx) for name in option.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["generate", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, epilog=EXAMPLES, no_args_is_help=False, invoke_without_command=True)
@click.version_option(__version__, message="rllama %(version)s")
@click.pass_context
def rllama(ctx: click.Context) -> None:
    """Run LLaMA-family language models, from the checkpoint to the text.

    Options without a command are those of 'generate': see 'rllama generate --help'.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


rllama.add_command(generate)
rllama.add_command(inspect)
rllama.add_command(bench)
