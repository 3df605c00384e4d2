"""The folder of the prompt cache: what is in it, and making room in it.

Everything works beside other processes that write and remove files there: what has gone
meanwhile is passed over.  Only what has the names of this program is ever removed.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 1
"""Of the form of the files; folders of other versions are only listed and removed."""
SUFFIX = ".kv"
TEMPORARY = ".writing-"
MODEL_FILE = "model.json"
"""What a list says of a model."""
ABANDONED_SECONDS = 3600
"""A temporary file so old is one whose writer has gone."""
_MODEL_FOLDER = re.compile(r"v\d+-[0-9a-f]{32}")
_BLOCK_FILE = re.compile(r"[0-9a-f]{64}\.kv")


def default_folder() -> Path:
    """Return where prompts are kept unless told otherwise."""
    return Path(platformdirs.user_cache_dir("pyrllama")) / "prompts"


def model_folder(folder: Path, identity: bytes) -> Path:
    """Return the folder of one model's blocks."""
    return folder / f"v{VERSION}-{identity.hex()[:32]}"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """The blocks of one model in the cache."""

    folder: str
    label: dict[str, Any]
    """What the writer said of the model: ``model``, ``block_format`` and the like."""
    blocks: int
    bytes: int
    oldest_use: float
    """Seconds since the epoch."""
    latest_use: float


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    size: int
    used: float


def stored_models(folder: Path) -> list[StoredModel]:
    """Return what is in a cache, the models used last first."""
    models = []
    for path in _model_folders(folder):
        entries = list(_blocks(path))
        times = [entry.used for entry in entries] or [0.0]
        size = sum(entry.size for entry in entries)
        label = _label(path / MODEL_FILE)
        models.append(StoredModel(str(path), label, len(entries), size, min(times), max(times)))
    return sorted(models, key=lambda model: -model.latest_use)


def prune(folder: Path, max_bytes: int) -> None:
    """Remove what was unused for longest until a cache has at most so many bytes."""
    entries = [entry for path in _model_folders(folder) for entry in _blocks(path)]
    excess = sum(entry.size for entry in entries) - max_bytes
    for entry in sorted(entries, key=lambda entry: entry.used):
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            entry.path.unlink()
        excess -= entry.size
    for path in _model_folders(folder):
        _remove_abandoned(path)


def clear(folder: Path) -> int:
    """Remove all blocks of a cache and return the bytes that they had.

    Raises ``OSError`` for files that cannot be removed.
    """
    removed = 0
    for path in _model_folders(folder):
        for entry in _blocks(path):
            entry.path.unlink(missing_ok=True)
            removed += entry.size
        (path / MODEL_FILE).unlink(missing_ok=True)
        _remove_abandoned(path, age=0)
        with contextlib.suppress(OSError):  # strangers' files stay, and so does their folder
            path.rmdir()
    return removed


def _model_folders(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            if _MODEL_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path


def _blocks(folder: Path) -> Iterator[_Entry]:
    for path in folder.iterdir():
        if _BLOCK_FILE.fullmatch(path.name):
            with contextlib.suppress(OSError):
                found = path.stat()
                yield _Entry(path, found.st_size, found.st_mtime)


def _remove_abandoned(folder: Path, age: float = ABANDONED_SECONDS) -> None:
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= age:
                path.unlink()


def _label(file: Path) -> dict[str, Any]:
    try:
        label = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return label if isinstance(label, dict) else {}
