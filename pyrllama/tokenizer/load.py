"""Opening a tokenizer file of any format, recognised by its content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.find import find_tokenizer, is_gguf
from pyrllama.tokenizer.gguf_vocabulary import tokenizer_from_gguf

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pyrllama.tokenizer.base import Tokenizer

MAX_BYTES = 1 << 28
"""The largest known tokenizer file is a tenth of it; what is larger is something else."""

_FIELD_1_BYTES = 0x0A
"""How a SentencePiece model starts: a message with the number 1."""


def load_tokenizer(path: Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """Open a tokenizer file, the one in or above a folder, or the vocabulary of a GGUF file.

    ``metadata`` is that of the GGUF file, where it is open already.

    Raises ``TokenizerError`` naming the file if it is missing, broken or of no known format,
    ``CorruptFileError`` for a broken GGUF file.
    """
    file = find_tokenizer(path) if path.is_dir() else path
    try:
        if is_gguf(file):
            return _load_gguf(file) if metadata is None else tokenizer_from_gguf(metadata)
        return _load(_read(file), file)
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read: {error.strerror or error}") from None
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None


def _load(data: bytes, file: Path) -> Tokenizer:
    # The backends are imported when needed: each brings a library that takes 40 to 110 ms.
    from pyrllama.tokenizer.llama2c import is_llama2c, read_llama2c  # noqa: PLC0415
    from pyrllama.tokenizer.tiktoken_file import is_tiktoken, read_tiktoken  # noqa: PLC0415

    if not data:
        raise TokenizerError("the file is empty; fetch it again")
    if data.lstrip()[:1] == b"{":
        from pyrllama.tokenizer.json_file import JsonTokenizer  # noqa: PLC0415

        return JsonTokenizer(data, file.parent)
    if is_tiktoken(data):
        return read_tiktoken(data)
    if is_llama2c(data):
        return read_llama2c(data)
    if data[0] == _FIELD_1_BYTES:
        from pyrllama.tokenizer.sentencepiece_model import read_sentencepiece  # noqa: PLC0415

        return read_sentencepiece(data)
    raise TokenizerError(
        "not a tokenizer of a known format: SentencePiece .model, tiktoken .model, "
        "tokenizer.json, llama2.c tokenizer.bin, GGUF"
    )


def _load_gguf(file: Path) -> Tokenizer:
    from pyrllama.checkpoints.gguf_file import GgufFile  # noqa: PLC0415 - a room of its own

    gguf = GgufFile(file)
    try:
        return tokenizer_from_gguf(gguf.metadata)
    finally:
        gguf.close()


def _read(file: Path) -> bytes:
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise TokenizerError(f"{size} bytes are too many for a tokenizer")
    return file.read_bytes()
