"""The conversation in the README, driven at a terminal: what it shows is what the page says."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("pty", reason="needs pseudo-terminals")

from support.terminal import CTRL_D, ENTER, Terminal

import pyrllama
from pyrllama.cpu import target

ROOT = Path(pyrllama.__file__).parents[1]
PROMPT = ">>>"


def recorded() -> tuple[list[str], str]:
    """Return the arguments of the recorded command, and what its screen showed."""
    page = (ROOT / "README.md").read_text("utf-8")
    block = page.split("<!-- terminal -->\n```text\n")[1].split("```")[0]
    command, _, screen = block.partition("\n")
    return command.removeprefix("$ rllama ").split(), screen.rstrip()


def without_figures(screen: str) -> str:
    """Return a screen without what differs between machines, the line of rates and memory."""
    return re.sub(r"prompt \d+ tokens \(\d+ reused\), .*?seed", "seed", screen, flags=re.DOTALL)


def test_the_conversation_of_the_readme(tmp_path: Path) -> None:
    if "avx2" not in {isa.name for isa in target.supported()}:
        pytest.skip("matrix tiles round otherwise, and plain vectors take minutes to compile")
    arguments, screen = recorded()
    chosen = {"PYTHONPATH": str(ROOT), "RLLAMA_BACKEND": "cpu", target.ISA_VARIABLE: "avx2"}
    command = [sys.executable, "-m", "pyrllama", *arguments, "--history", str(tmp_path / "typed")]
    with Terminal(command, {**os.environ, **chosen}) as shown:
        lines = re.findall(rf"^{PROMPT} (.*)$", screen, re.MULTILINE)
        assert len(lines) == 8
        for number, line in enumerate(lines, 1):
            shown.wait_for(f"\n{PROMPT}", number)
            shown.type(line + ENTER)
        shown.wait_for(f"\n{PROMPT}", len(lines) + 1)
        begin = screen.partition("\n")[0]
        told = begin + shown.text.partition(begin)[2]
        shown.type(CTRL_D)
        assert shown.end() == 0
    assert without_figures(told).startswith(without_figures(screen))
