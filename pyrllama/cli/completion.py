"""``rllama completion``: the script that teaches a shell to complete the command's options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")

EPILOG = """\b
Once and for all:
  bash  rllama completion bash >> ~/.bashrc
  zsh   rllama completion zsh >> ~/.zshrc
  fish  rllama completion fish > ~/.config/fish/completions/rllama.fish
"""


@click.command(epilog=EPILOG, short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the script that completes commands, options and paths in SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows these three
    click.echo(kind(ctx.find_root().command, {}, "rllama", "_RLLAMA_COMPLETE").source())
    return 0
