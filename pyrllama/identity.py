"""What stands for a model's weights, so that numbers of one are never taken for another's.

Reading all weights would take as long as loading them.  What is hashed instead: the config, the
name, shape and type of every tensor, and of each file its size, the time of its last change and
pieces spread over it; of small files, such as ``params.json``, the whole content instead.  So a
file that was written anew counts as another one even where its pieces are the same.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyrllama

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.tensors import TensorType

SMALL_BYTES = 1 << 20
"""Files up to this size are hashed whole."""
PIECES = 32
PIECE_BYTES = 4096
IDENTITY_BYTES = 32


def weights_identity(checkpoint: Checkpoint) -> bytes | None:
    """Return a hash that stands for an open checkpoint; None where no file is behind it.

    Raises ``OSError`` if a file cannot be read.
    """
    if not checkpoint.path.exists():
        return None
    digest = hashlib.blake2b(repr(checkpoint.config).encode(), digest_size=IDENTITY_BYTES)
    for name, info in sorted(checkpoint.tensors.items()):
        digest.update(repr((name, info.shape, info.type.name)).encode())
    for file in _files(checkpoint.path):
        digest.update(_fingerprint(file))
    return digest.digest()


def numbers_identity(
    weights: bytes,
    weight_type: TensorType | None,
    block_format: str,
    rope_context: int | None = None,
) -> bytes:
    """Return a hash of all that shapes the numbers of a KV cache, but for the tokens.

    ``weight_type`` is the one that the weights were converted to, ``block_format`` says which
    code computed the numbers and how they are stored, and ``rope_context`` is the loaded context
    where the frequencies of RoPE depend on it.
    """
    converted = weight_type.name if weight_type is not None else "as stored"
    facts = "\0".join((pyrllama.__version__, converted, block_format, str(rope_context)))
    return hashlib.blake2b(weights + facts.encode(), digest_size=IDENTITY_BYTES).digest()


def _files(path: Path) -> list[Path]:
    """Return the files of a checkpoint: of a folder all that are not hidden."""
    if path.is_file():
        return [path]
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def _fingerprint(file: Path) -> bytes:
    found = file.stat()
    if found.st_size <= SMALL_BYTES:
        return hashlib.blake2b(file.read_bytes()).digest()
    digest = hashlib.blake2b(f"{found.st_size} {found.st_mtime_ns}".encode())
    with file.open("rb", buffering=0) as stream:
        for piece in range(PIECES):
            stream.seek(piece * (found.st_size - PIECE_BYTES) // (PIECES - 1))
            digest.update(stream.read(PIECE_BYTES))
    return digest.digest()
