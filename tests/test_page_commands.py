"""Every ``rllama`` command in the shell blocks of the pages runs.

Models that a page names but that cannot be shipped are replaced by the packaged one, and the
work is made small; the options are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.markdown import fenced_blocks
from test_docs import PAGES, ROOT, commands

from pyrllama.cli import main
from pyrllama.data import default_model_path

if TYPE_CHECKING:
    from pathlib import Path

SHELL = {"sh", "bash", "console", "shell"}
STORY = "Once upon a time there was a dog. The dog had a red ball and liked to run. " * 80
SMALL = {
    "generate": ["--max-tokens", "2"],
    "bench": ["--prompt-tokens", "4", "--generate-tokens", "2", "--repetitions", "1"],
    "perplexity": ["--chunks", "1"],
    "imatrix": ["--chunks", "1"],
}
"""Options that make a command's work small; of an option given twice the last one counts."""
DROPPED = {
    "--tokenizer-path",
    "--tokenizer-model",
    "--param-path",
    "--max-seq-len",
    "--context",
    "--imatrix",
    "--depth",
}
"""Options with a value that belongs to the page's model alone."""


def page_commands() -> list[list[str]]:
    """Return the different commands of all pages, but for those that need what was done before.

    ``pull`` has a hub of its own in its tests, and ``bench --plot`` a history.
    """
    found = {
        tuple(arguments)
        for page in PAGES
        for block in fenced_blocks(page.read_text("utf-8"))
        if block.language in SHELL
        for arguments in commands(block.code.replace("\\\n", " ").splitlines())
    }
    return [
        list(arguments)
        for arguments in sorted(found)
        if arguments[:1] != ("pull",) and "--plot" not in arguments
    ]


def runnable(arguments: list[str], story: Path) -> list[str]:
    """Return a command with the packaged model in place of the page's."""
    replaced = {
        "--model-path": str(default_model_path()),
        "--shape": str(default_model_path()),
        "--kl-divergence": str(default_model_path()),
        "--file": str(story),
        "--text": str(story),
        "--prompt-file": str(story),
    }
    words, out = iter(arguments), []
    for word in words:
        if word in DROPPED:
            next(words)
        elif word in replaced:
            next(words)
            out += ["--model-path" if word == "--shape" else word, replaced[word]]
        else:
            out.append(word)
    if out[:1] == ["inspect"]:
        return ["inspect", str(default_model_path()), *out[2:]]
    if out[:1] == ["quantize"]:
        return ["quantize", str(default_model_path()), str(story.with_name(out[2])), *out[3:]]
    command = out[0] if out and not out[0].startswith("-") else "generate"
    made_small = SMALL.get(command, [])
    return [*out, *made_small] if out else ["generate", "--prompt", "Once", *made_small]


@pytest.mark.parametrize("arguments", page_commands(), ids=" ".join)
def test_a_command_of_the_pages(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # for what a command writes
    story = tmp_path / "story.txt"
    story.write_text("Once upon a time" if "--prompt-file" in arguments else STORY, "utf-8")
    status = main(runnable(arguments, story))
    assert status == 0, capsys.readouterr().err


def test_there_are_commands() -> None:
    assert (ROOT / "README.md") in PAGES
    assert len(page_commands()) > 10
