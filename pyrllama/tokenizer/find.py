"""Finding the tokenizer of a model, and telling whether the two belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.errors import RllamaError, TokenizerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyrllama.tokenizer.base import Tokenizer

PADDED_TO = 64
"""Embeddings with rows for no token are padded to a multiple of this."""
MAX_PADDING = 512
"""Rows for no token that an embedding may have; Qwen 2 has 290."""

_GGUF_MAGIC = b"GGUF"
_PATTERNS = ("tokenizer.json", "tokenizer.model", "*.model", "*.model.v*", "*.tiktoken", "tok*.bin")
"""Names under which tokenizers are published, those that know more of the model first."""


def is_gguf(path: Path) -> bool:
    """Tell whether a file says of itself that it is GGUF."""
    with path.open("rb") as file:
        return file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC


def find_tokenizer(
    model_path: Path, explicit: Path | None = None, vocab_size: int | None = None
) -> Path:
    """Return the tokenizer file of a model, which may be a file or a folder.

    ``explicit``, a file or a folder, goes before everything.  A GGUF file holds its own.
    Otherwise it lies inside the folder or beside the file, or else one level above.  Where
    files of several models may lie together - the model is a single file - it is the first
    whose vocabulary has ``vocab_size`` tokens, or else the first that fits into that many.

    Raises ``TokenizerError`` that says where it looked.
    """
    try:
        if explicit is not None:
            return explicit if explicit.is_file() else _find(explicit, [explicit], vocab_size)
        if model_path.is_file() and is_gguf(model_path):
            return model_path
        beside = model_path if model_path.is_dir() else model_path.parent
        return _find(model_path, [beside, beside.resolve().parent], vocab_size)
    except OSError as error:
        raise TokenizerError(f"{model_path}: cannot be read: {error.strerror or error}") from None


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int, path: Path) -> None:
    """Raise ``TokenizerError`` if a tokenizer cannot be the one of a model.

    Both must have the same number of tokens, but that a model may have rows for no token: up
    to ``MAX_PADDING`` of them, if they fill its vocabulary to a multiple of ``PADDED_TO``.
    """
    if not _fits(tokenizer.vocab_size, vocab_size):
        raise TokenizerError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}, so "
            f"they do not belong together; name the model's own with --tokenizer-path"
        )


def _fits(n_tokens: int, vocab_size: int) -> bool:
    padding = vocab_size - n_tokens
    return padding == 0 or (0 < padding <= MAX_PADDING and vocab_size % PADDED_TO == 0)


def _find(model_path: Path, folders: list[Path], vocab_size: int | None) -> Path:
    """Return the first candidate of the first folder that has a fitting one."""
    rejected: list[str] = []
    for folder in folders:
        candidates = [path for path in _candidates(folder) if path != model_path]
        if candidates and (vocab_size is None or model_path.is_dir()):
            return candidates[0]
        sizes = {path: _size(path, rejected) for path in candidates}
        for wanted in (lambda n: n == vocab_size, lambda n: _fits(n, vocab_size or 0)):
            for path, size in sizes.items():
                if size is not None and wanted(size):
                    return path
        rejected += [f"{path.name} has {n} tokens" for path, n in sizes.items() if n is not None]
    looked = " and ".join(str(folder) for folder in folders)
    found = f" ({'; '.join(rejected)})" if rejected else ""
    needs = "" if vocab_size is None else f" with {vocab_size} tokens"
    raise TokenizerError(
        f"{model_path}: found no tokenizer{needs} in {looked}{found}; looked for "
        f"{', '.join(_PATTERNS)}: put it there or name it with --tokenizer-path"
    )


def _candidates(folder: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for pattern in _PATTERNS:
        for path in sorted(folder.glob(pattern)):
            if path not in seen and path.is_file():
                seen.add(path)
                yield path


def _size(path: Path, rejected: list[str]) -> int | None:
    """Return how many tokens a candidate has, None with a note if it cannot be read."""
    from pyrllama.tokenizer.load import load_tokenizer  # noqa: PLC0415 - they need each other

    try:
        return load_tokenizer(path).vocab_size
    except RllamaError as error:
        rejected.append(f"{path.name} cannot be used: {error}")
        return None
