"""Machine code kept on disk, from one run to the next, for every backend that compiles.

What is found there is run, so it is read only from folders that nobody else can write to, and
only if it is whole: a file begins with the digest of what follows.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "RLLAMA_CACHE_DIR"
"""Environment variable that names another folder for machine code."""

DIGEST_BYTES = 32


def folder() -> Path:
    """Return the folder under which machine code is kept."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("pyrllama")) / "kernels"


def is_ours(path: Path) -> bool:
    """Whether a folder exists and nobody else can have put code into it."""
    try:
        status = path.stat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return True  # Windows keeps a user's cache folder to the user
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def read(file: Path) -> bytes | None:
    """Return the code in a file, or None if there is none that is whole and certainly ours."""
    if not is_ours(file.parent):
        return None
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return code if code and digest == _digest(code) else None


def write(file: Path, code: bytes) -> None:
    """Write code whole or not at all, whoever else writes the file at the same time.

    Raises ``OSError`` where the folder cannot be made or written.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(_digest(code) + code)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _digest(code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=DIGEST_BYTES).digest()
