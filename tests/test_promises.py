"""The promises of ``docs/security.md`` that hold for the package as a whole."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyrllama
from pyrllama.code_cache import folder as cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(pyrllama.__file__).parent
RUN_A_FILE = {
    "cloudpickle", "code", "codeop", "dill", "joblib", "marshal", "pickle", "runpy", "shelve",
    "torch",
}  # fmt: skip
"""Modules whose readers run what a file says."""
START_A_PROCESS = {"multiprocessing", "pty", "subprocess"}
NETWORK = {
    "aiohttp", "asyncio", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "ssl",
    "telnetlib", "urllib", "urllib3", "xmlrpc",
}  # fmt: skip
KNOW_THE_HUB = {"hub.py", "cli/doctor.py"}
EVALUATE = {"eval", "exec", "__import__", "compile"}

WATCHED = """
import json, os, sys
seen = []
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.spawn",
                         "urllib.")) or event in {"os.system", "os.fork", "os.forkpty"}:
        seen.append([event, ""])
    elif event == "open" and isinstance(arguments[0], str):
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(["write", os.path.abspath(path)])
sys.addaudithook(watch)
from pyrllama.cli import main
status = main(sys.argv[1:])
print(json.dumps({"status": status, "seen": seen}))
"""
"""Runs the command and prints what it did to the world around it."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield every file of the package, by its path inside of it, and its syntax."""
    for source in sorted(PACKAGE.rglob("*.py")):
        yield source.relative_to(PACKAGE).as_posix(), ast.parse(source.read_text("utf-8"))


def imports(tree: ast.Module) -> set[str]:
    """Return the top names of all that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_the_package_imports_nothing_that_runs_a_file() -> None:
    for name, tree in modules():
        assert not imports(tree) & (RUN_A_FILE | START_A_PROCESS), name


def test_the_package_evaluates_no_text() -> None:
    for name, tree in modules():
        called = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & EVALUATE, name


def test_arrays_are_never_loaded_with_numpys_own_pickles() -> None:
    for name, tree in modules():
        loads = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr == "load"
            and ast.unparse(node.value) in {"np", "numpy"}
        ]
        assert not loads, name


def test_only_the_hub_knows_the_network() -> None:
    for name, tree in modules():
        found = imports(tree)
        assert not found & NETWORK, name
        assert "huggingface_hub" not in found or name in KNOW_THE_HUB, name


def watched(*arguments: str | Path) -> list[list[str]]:
    """Run the command in a process of its own and return what it did."""
    environment = os.environ | {
        "PYTHONPATH": str(PACKAGE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["status"] == 0
    seen: list[list[str]] = report["seen"]
    return seen


def test_generating_opens_no_socket_and_starts_no_process(data: Path) -> None:
    model = data / "models" / "stories260K.bin"
    seen = watched("--model-path", model, "--prompt", "Once", "--max-tokens", "3", "--quiet")
    assert [event for event, _ in seen if event != "write"] == []
    written = [Path(path) for event, path in seen if event == "write"]
    assert [path for path in written if not path.is_relative_to(cache_folder())] == []


def test_inspecting_touches_nothing(data: Path) -> None:
    for model in ("stories260K.bin", "llama-2-tiny-random.gguf", "tiny-random-llama-hf"):
        assert watched("inspect", data / "models" / model) == []
