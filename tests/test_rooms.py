"""The rooms of ``docs/architecture.md``: a room imports only those that it may know."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pyrllama

PACKAGE = Path(pyrllama.__file__).parent
NOUNS = {"core", "errors", "model_config", "tensors"}
MAY_KNOW = {
    "errors": set(),
    "core": {"errors", "sampling_ranges"},
    "sampling_ranges": set(),
    "model_config": set(),
    "tensors": set(),
    "quants": NOUNS,
    "code_cache": set(),
    "models": NOUNS,
    "checkpoints": NOUNS | {"models", "quants"},
    "tokenizer": NOUNS | {"checkpoints"},
    "kvcache": NOUNS,
    "sampling": NOUNS | {"sampling_ranges"},
    "structured": NOUNS | {"tokenizer"},
    "reference": NOUNS | {"checkpoints", "models", "quants"},
    "batch_limits": NOUNS,
    "cpu": NOUNS | {"batch_limits", "checkpoints", "code_cache", "models", "quants"},
    "opencl": NOUNS | {"batch_limits", "checkpoints", "code_cache", "models", "quants", "units"},
    "block_bytes": NOUNS,
    "prefix": NOUNS | {"block_bytes", "kvcache"},
    "lookup": NOUNS,
    "speculation": NOUNS,
    "generation": NOUNS | {"prefix", "sampling"},
    "prompt_folder": set(),
    "prompt_store": NOUNS | {"prompt_folder"},
    "backend": NOUNS,
    "output_rows": NOUNS | {"backend", "sampling"},
    "scheduler": NOUNS | {"backend", "generation", "kvcache", "prefix", "speculation"},
    "engine": NOUNS
    | {"backend", "generation", "kvcache", "output_rows", "prefix", "sampling", "scheduler"}
    | {"speculation"},
    "sampling_settings": NOUNS | {"sampling_ranges"},
    "stop_strings": NOUNS,
    "request_maker": NOUNS | {"sampling_settings", "stop_strings", "structured", "tokenizer"},
}
"""Rooms that do not know who uses them; ``llama``, ``cli`` and the like put them together."""
ONLY_THE_COMMAND_LINE = {"click", "prompt_toolkit", "rich"}


def sources(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(source: Path) -> set[str]:
    """Return the names of all modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("room", MAY_KNOW)
def test_a_room_knows_only_those_below(room: str) -> None:
    for source in sources(room):
        known = {name.split(".")[1] for name in imported(source) if name.startswith("pyrllama.")}
        known = {name for name in known if (PACKAGE / name).is_dir() or sources(name)[0].is_file()}
        strangers = known - MAY_KNOW[room] - {room}
        assert not strangers, f"{source.relative_to(PACKAGE)} imports {strangers}"


def test_only_the_command_line_prints() -> None:
    for source in PACKAGE.rglob("*.py"):
        if source.relative_to(PACKAGE).parts[0] == "cli":
            continue
        tops = {name.split(".")[0] for name in imported(source)}
        assert not tops & ONLY_THE_COMMAND_LINE, source
        calls = [node for node in ast.walk(ast.parse(source.read_text("utf-8")))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
        assert not any(ast.unparse(call.func) == "print" for call in calls), source
