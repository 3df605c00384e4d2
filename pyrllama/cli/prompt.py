"""The prompt of the command line: from an option, a file or standard input."""

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
    name = "standard input" if prompt_file == Path("-") else str(prompt_file)
    return _decode(name, _read(name, prompt_file))


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


def _read(name: str, path: Path) -> bytes:
    try:
        if path == Path("-"):
            content = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        else:
            with path.open("rb") as file:
                content = file.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise PromptError(f"{name}: the prompt cannot be read: {error.strerror}") from None
    if len(content) > MAX_PROMPT_BYTES:
        raise PromptError(f"{name}: the prompt has more than {MAX_PROMPT_BYTES >> 20} MiB")
    return content


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name}: the prompt is not UTF-8 at byte offset {error.start} "
            f"(0x{content[error.start]:02x}); convert it, for example with iconv -t UTF-8"
        ) from None
