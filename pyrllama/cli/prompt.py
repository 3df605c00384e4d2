"""Texts of the command line: from an option, a file or standard input, checked for UTF-8."""

from __future__ import annotations

import sys
from pathlib import Path

from pyrllama.errors import PromptError

MAX_PROMPT_BYTES = 16 * 2**20
"""Far over any context; an endless input such as /dev/zero ends here."""


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """Return the prompt; raises ``PromptError`` unless exactly one source is given and UTF-8."""
    if prompt is not None and prompt_file is not None:
        raise PromptError("--prompt and --prompt-file are both given; leave one out")
    if prompt is not None:
        return _checked(prompt)
    if prompt_file is None:
        raise PromptError(
            'there is no prompt; give one with --prompt "..." or --prompt-file FILE '
            "(- reads standard input)"
        )
    return read_text(prompt_file, "prompt", MAX_PROMPT_BYTES)


def read_text(path: Path, what: str, max_bytes: int) -> str:
    """Return a file's text, or that of standard input for ``-``.

    ``what`` it is for stands in the message of the ``PromptError`` for a file that cannot be
    read, has more than ``max_bytes`` or is not UTF-8.
    """
    name = "standard input" if path == Path("-") else str(path)
    try:
        if path == Path("-"):
            content = sys.stdin.buffer.read(max_bytes + 1)
        else:
            with path.open("rb") as file:
                content = file.read(max_bytes + 1)
    except OSError as error:
        raise PromptError(f"{name}: the {what} cannot be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise PromptError(f"{name}: the {what} has more than {max_bytes >> 20} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name}: the {what} is not UTF-8 at byte offset {error.start} "
            f"(0x{content[error.start]:02x}); convert it, for example with iconv -t UTF-8"
        ) from None


def _checked(prompt: str) -> str:
    """Return an argument that is text: Python hides stray bytes of it in lone surrogates."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"--prompt is not UTF-8 at character {error.start}; convert it and give it as a file "
            f"with --prompt-file"
        ) from None
    return prompt
