"""The pages against the program: links, names, blocks of Python, and command lines.

What a page may say: `cli/bench.py` or `tests/cli` in backticks is a file or folder of the
repository or the package; `cpu/step.py:forward` and `tests/test_docs.py::test_links` also
name what is defined there.  A block or a span that begins with ``rllama`` is a command line
of the real program.  A block behind ``<!-- run -->`` is run.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from support.markdown import anchors, code_lines, code_spans, fenced_blocks, links

from pyrllama import errors
from pyrllama.cli.commands import rllama

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from support.markdown import Block

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyrllama"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "training/*.md", "pyrllama/data/*.md")
    for path in ROOT.glob(pattern)
)
DEFAULT_MODEL = PACKAGE / "data" / "stories.gguf"
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)

_PATH = re.compile(r"(?P<path>\w[\w.-]*(?:/[\w.-]+)*/?)(?:::?(?P<name>[A-Za-z_][\w.]*))?")
_SYNOPSIS = re.compile(r"[\[\]<>…|]|\.\.\.")
"""What stands in a form of a command and not in a command itself."""
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_SEPARATORS = {"|", "&&", "||", ";", "&", "(", ")", ">", ">>", "<"}


# --- links and names --------------------------------------------------------------------------


@each_page
def test_links(page: Path) -> None:
    for target in links(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), f"{page.name} links to {target}"


def find(path: str) -> Path | None:
    """Return the file or folder that a page means, None if there is none."""
    return next((base / path for base in (ROOT, PACKAGE) if (base / path).exists()), None)


def means_a_file(path: str) -> bool:
    """Tell whether a span can only mean something of the repository."""
    top, slash, _ = path.partition("/")
    if slash:
        return not top.startswith(".") and any((base / top).is_dir() for base in (ROOT, PACKAGE))
    return path.endswith((".py", ".toml"))


@cache
def defined_in(file: Path) -> frozenset[str]:
    """Return the names that a module defines, those of a class as ``Class.name``."""
    return frozenset(_names(ast.parse(file.read_text("utf-8")).body))


def _names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name):
                yield prefix + name
            case ast.ClassDef(name=name):
                yield prefix + name
                yield from _names(statement.body, f"{prefix}{name}.")
            case ast.Assign(targets=targets):
                yield from (
                    prefix + target.id for target in targets if isinstance(target, ast.Name)
                )
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name


@each_page
def test_files_and_what_they_define(page: Path) -> None:
    for span in code_spans(page.read_text("utf-8")):
        found = _PATH.fullmatch(span)
        if found is None or not means_a_file(found["path"]):
            continue
        file = find(found["path"])
        assert file, f"{page.name} speaks of `{span}`, which is not there"
        if found["name"]:
            assert found["name"] in defined_in(file), f"{page.name} speaks of `{span}`"


@each_page
def test_errors_and_variables(page: Path) -> None:
    """An error that a page names is one of ours or Python's; a variable is one that we read."""
    sources = [*PACKAGE.rglob("*.py"), *ROOT.glob("tests/**/*.py")]
    text = "".join(source.read_text("utf-8") for source in sources)
    for span in code_spans(page.read_text("utf-8")):
        if re.fullmatch(r"[A-Z]\w+Error", span):
            assert hasattr(errors, span) or hasattr(builtins, span), f"{page.name}: {span}"
        if re.fullmatch(r"RLLAMA_[A-Z_]+", span):
            assert f'"{span}"' in text, f"{page.name}: {span}"


# --- Python -----------------------------------------------------------------------------------


def marked(language: str) -> list[tuple[Path, Block]]:
    """Return the blocks of a language that are to be run, with their pages."""
    return [
        (page, block)
        for page in PAGES
        for block in fenced_blocks(page.read_text("utf-8"))
        if block.run and block.language == language
    ]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that finds this very package."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True
    )


def skip_without(code: str) -> None:
    """Skip a block that runs the model of the package where there is none."""
    needed = "--shape" not in code and ("rllama" in code.split() or ".load(" in code)
    if needed and not DEFAULT_MODEL.is_file():
        pytest.skip("the package has no model yet")


@each_page
def test_python_compiles(page: Path) -> None:
    for block in fenced_blocks(page.read_text("utf-8")):
        if block.language == "python":
            compile(block.code, str(page), "exec", dont_inherit=True)


@pytest.mark.parametrize(("page", "block"), marked("python"), ids=lambda v: getattr(v, "stem", ""))
def test_python_runs(page: Path, block: Block, tmp_path: Path) -> None:
    skip_without(block.code)
    done = run([sys.executable, "-W", "error", "-c", block.code], tmp_path)
    assert done.returncode == 0, f"{page.name}: {done.stderr}"


@pytest.mark.parametrize("name", ["step", "add"])
def test_the_kernel_that_is_followed_is_the_one_that_runs(name: str) -> None:
    shown = next(
        block.code
        for block in fenced_blocks((ROOT / "docs" / "kernels.md").read_text("utf-8"))
        if f"def {name}" in block.code
    )
    source = (PACKAGE / "cpu" / "matvec.py").read_text("utf-8")
    real, page = function_named(name, source), function_named(name, shown)
    statements = [ast.unparse(statement) for statement in real.body[1:]]  # the docstring apart
    assert [ast.unparse(statement) for statement in page.body] == statements


def function_named(name: str, source: str) -> ast.FunctionDef:
    """Return the definition of a function in a source text."""
    (found,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return found


# --- command lines ----------------------------------------------------------------------------


def commands(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the arguments of every ``rllama`` command that stands in lines of shell."""
    for line in lines:
        if re.search(r"(?<![\w/-])rllama(?![\w/.-])|-m pyrllama\b", line):
            yield from arguments_of(line)


def arguments_of(line: str) -> Iterator[list[str]]:
    """Yield what stands behind ``rllama`` in each command of a line of shell."""
    line = re.sub(r'"?\$\(.*\)"?', "X", line.removeprefix("$ "))
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # an apostrophe: a sentence and no command
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in _SEPARATORS:
            command.append(word)
            continue
        yield from _behind_rllama(command)
        command = []


def _behind_rllama(command: list[str]) -> Iterator[list[str]]:
    words = list(command)
    while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] in {"time", "sudo", "exec"}):
        words.pop(0)
    if not words:
        return
    if Path(words[0]).name == "rllama":
        yield words[1:]
    elif Path(words[0]).name.startswith("python") and words[1:3] == ["-m", "pyrllama"]:
        yield words[3:]


def parse(arguments: list[str]) -> None:
    """Let the real program take a command line apart; what it would then do is stubbed."""
    if not any(_SYNOPSIS.search(argument) for argument in arguments):
        rllama.main(arguments, prog_name="rllama", standalone_mode=False)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every command do nothing once its options are parsed."""
    monkeypatch.setattr(rllama, "callback", lambda: 0)
    for command in rllama.commands.values():
        monkeypatch.setattr(command, "callback", lambda **_: 0)


@each_page
@pytest.mark.usefixtures("no_work")
def test_command_lines(page: Path) -> None:
    text = page.read_text("utf-8")
    for arguments in commands(code_lines(text)):
        parse(arguments)
    for arguments in commands(code_spans(text)):
        with suppress(click.MissingParameter):  # a sentence may name a command alone
            parse(arguments)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("page", "block"), marked("bash"), ids=lambda v: getattr(v, "stem", ""))
def test_commands_run(page: Path, block: Block, tmp_path: Path) -> None:
    skip_without(block.code)
    script = f'rllama() {{ "{sys.executable}" -m pyrllama "$@"; }}\n{block.code}'
    done = run(["bash", "-euo", "pipefail", "-c", script], tmp_path)
    assert done.returncode == 0, f"{page.name}: {done.stderr}"


# --- the checks themselves --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("rllama --prompt 'a b'", [["--prompt", "a b"]]),
        ("$ RLLAMA_ISA=avx2 .venv/bin/rllama bench", [["bench"]]),
        ("git log -1 | rllama --prompt-file - > x", [["--prompt-file", "-"]]),
        ("time rllama; python -m pyrllama doctor", [[], ["doctor"]]),
        ('rllama --model-path "$(rllama pull a/b)"', [["--model-path", "X"]]),
        ("pip install pyrllama", []),
    ],
)
def test_commands_are_found(line: str, arguments: list[list[str]]) -> None:
    assert list(arguments_of(line)) == arguments


@pytest.mark.parametrize("text", ["Try `rllama bench --fast`.", "    rllama bench --fast\n"])
@pytest.mark.usefixtures("no_work")
def test_a_flag_that_does_not_exist_is_found(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, "utf-8")
    with pytest.raises(click.NoSuchOption):
        test_command_lines(page)


def test_a_name_that_does_not_exist_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in ("`cpu/nothing.py`", "`cpu/step.py:backward`", "`tests/test_docs.py::test_no`"):
        page.write_text(text, "utf-8")
        with pytest.raises(AssertionError):
            test_files_and_what_they_define(page)
