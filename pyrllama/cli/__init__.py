"""The command ``rllama``: runs a command and turns every error into one line and a status.

Exit statuses: 0 done, 1 a defect of this program or a closed pipe, 2 an error that the user
can mend, 130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING

import click

from pyrllama.cli.commands import rllama
from pyrllama.cli.terminal import print_error
from pyrllama.errors import RllamaError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_DEFECT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``rllama`` with the process's arguments, or those given, and return the exit status.

    With ``RLLAMA_DEBUG=1`` in the environment errors keep their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character of the text
    try:
        return rllama.main(arguments, prog_name="rllama", standalone_mode=False) or 0
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get("RLLAMA_DEBUG") == "1":
            raise
        return _report(error)


def _report(error: Exception) -> int:
    """Print an error and return its exit status."""
    match error:
        case RllamaError():
            print_error(str(error))
            return EXIT_USER_ERROR
        case click.ClickException():
            command = (
                error.ctx.command_path
                if isinstance(error, click.UsageError) and error.ctx
                else "rllama"
            )
            print_error(f"{error.format_message()} See '{command} --help'.")
            return EXIT_USER_ERROR
        case MemoryError():
            print_error(
                "there is not enough memory; convert the weights with --quantize q4_0 or lower "
                "--max-seq-len"
            )
            return EXIT_USER_ERROR
        case _:
            print_error(
                f"internal error, {type(error).__name__}: {error}; please report it with the "
                f"command (RLLAMA_DEBUG=1 shows where it arose)"
            )
            return EXIT_DEFECT
