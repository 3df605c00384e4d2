"""The command as a process and as a function: help, versions, statuses, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_model import ByteTokenizer, FakeModel

import pyrllama
from pyrllama.cli import main
from pyrllama.cli.commands import rllama as rllama_group
from pyrllama.llama import Llama

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run


def test_help_has_examples(run: Run) -> None:
    text = run("--help").out
    for line in ('rllama --model-path LLaMA/7B --prompt "The meaning', "rllama bench --shape 7b"):
        assert line in text


@pytest.mark.parametrize("command", sorted(rllama_group.commands))
def test_every_command_has_help_with_examples(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.status == 0
    assert done.out.startswith(f"Usage: rllama {command} ")
    assert f"  rllama {command}" in done.out.split("Options:")[1]


def test_version(run: Run) -> None:
    assert run("--version").out == f"rllama {pyrllama.__version__}\n"


def test_an_unknown_command(run: Run) -> None:
    done = run("genrate", "--prompt", "x")
    assert done.status == 2
    assert done.err.startswith("error: No such command 'genrate'.")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """Return the model that ``generate`` will load; give it an error to raise."""
    model = FakeModel()
    monkeypatch.setattr(
        "pyrllama.cli.model.load", lambda *_, **__: Llama(model, ByteTokenizer(), 64)
    )
    return model


def test_a_defect_has_no_traceback(run: Run, failing: FakeModel) -> None:
    failing.error = ZeroDivisionError("division by zero")
    done = run("--model-path", "m", "--prompt", "x", "-q")
    assert done.status == 1
    assert done.err.startswith("error: internal error, ZeroDivisionError: division by zero")
    assert "please report" in done.err
    assert "Traceback" not in done.err


def test_a_defect_can_be_traced(failing: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLAMA_DEBUG", "1")
    failing.error = ZeroDivisionError("division by zero")
    with pytest.raises(ZeroDivisionError):
        main(["--model-path", "m", "--prompt", "x"])


def test_too_little_memory_can_be_mended(run: Run, failing: FakeModel) -> None:
    failing.error = MemoryError()
    done = run("--model-path", "m", "--prompt", "x", "-q")
    assert done.status == 2
    assert "--quantize q4_0" in done.err


def test_an_error_is_one_line_without_control_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise pyrllama.RllamaError("a\nname\x1b[2J of a file")

    monkeypatch.setattr("pyrllama.cli.model.load", load)
    done = run("--model-path", "m", "--prompt", "x")
    assert done.err == "error: a name\N{REPLACEMENT CHARACTER}[2J of a file\n"


def rllama(*arguments: str | Path, **settings: Any) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own."""
    command = [sys.executable, "-m", "pyrllama", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, **settings
    )


def test_as_a_process(stories: Path) -> None:
    process = rllama("--model-path", stories, "--prompt", "", "--temperature", "0",
                     "--max-tokens", "5", "-q")  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == b"Once upon a time,\n"
    assert err == b""


def test_the_exit_status_of_an_error(tmp_path: Path) -> None:
    process = rllama("--model-path", tmp_path / "nowhere", "--prompt", "x")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == b""
    assert err.startswith(b"error: ")
    assert b"Traceback" not in err


PAUSING = """
import signal, sys
from pyrllama.cli import main
from pyrllama.cli.commands import rllama as rllama_group
from pyrllama.reference.backend import ReferenceBackend

forward = ReferenceBackend.forward
steps = 0

def pausing(self, batch):
    global steps
    steps += 1
    if steps == 6:
        signal.pause()
    return forward(self, batch)

ReferenceBackend.forward = pausing
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not hasattr(signal, "pause"), reason="signals of POSIX")
def test_ctrl_c_leaves_the_text_so_far(stories: Path) -> None:
    settings = ("--model-path", str(stories), "--prompt", "", "--temperature", "0")
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSING, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    text = b"Once upon a time,"
    assert process.stdout.read(len(text)) == text  # it streams: five tokens, then it waits
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b"\n"
    assert b"ms/token" in err
    assert b"Traceback" not in err


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="pipes of POSIX")
def test_a_closed_pipe_is_no_error_message(stories: Path) -> None:
    process = rllama("--model-path", stories, "--prompt", "", "-q")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
