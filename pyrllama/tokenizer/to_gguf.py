"""A tokenizer as GGUF's metadata has it: the keys ``tokenizer.*``.

Source: the GGUF specification in ggml's ``docs/gguf.md``; field numbers from SentencePiece's
``sentencepiece_model.proto``.
"""

from __future__ import annotations

import enum
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.find import is_gguf
from pyrllama.tokenizer.protobuf import fields
from pyrllama.tokenizer.sentencepiece_model import (
    ModelType,
    Piece,
    PieceType,
    bpe_model,
    read_sentencepiece,
    read_specs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyrllama.tokenizer.base import Tokenizer

PREFIX = "tokenizer."
_SENTENCEPIECE_FIRST_BYTE = b"\x0a"
"""How a SentencePiece model starts: with a piece, its field number 1."""
_NO_SCORE = struct.pack("<f", 0.0)


class _Field(enum.IntEnum):
    """Field numbers of a SentencePiece model and of its pieces."""

    PIECES = 1
    TEXT = 1
    SCORE = 2
    TYPE = 3


def vocabulary_metadata(path: Path, vocab_size: int) -> dict[str, Any]:
    """Return the keys ``tokenizer.*`` that a tokenizer file gives for a model.

    Vocabularies are spelled out, padded with unused tokens to the ``vocab_size`` rows of the
    embedding; a GGUF file's own keys pass as they are.  Raises ``TokenizerError`` for a
    tokenizer with more tokens than the model, and for one that GGUF cannot express.
    """
    try:
        if is_gguf(path):
            return _copied(path)
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        return _spelled_out(data, path, vocab_size)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def chat_template(tokenizer: Path) -> str | None:
    """Return the template of the chats that stands beside a tokenizer, as Hugging Face has it."""
    folder = tokenizer.parent
    try:
        if (file := folder / "chat_template.jinja").is_file():
            return file.read_text("utf-8")
        config = folder / "tokenizer_config.json"
        template = (
            json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
        )
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"{folder}: the chat template cannot be read: {error}") from None
    if isinstance(template, list):  # several, each with its name
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((t.get("template") for t in named if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _spelled_out(data: bytes, path: Path, vocab_size: int) -> dict[str, Any]:
    """Return the keys for a file's content, which tells its format."""
    from pyrllama.tokenizer import byte_pair_to_gguf, llama2c, tiktoken_file  # noqa: PLC0415

    if data.lstrip()[:1] == b"{":
        return byte_pair_to_gguf.json_metadata(data, path, vocab_size)
    if tiktoken_file.is_tiktoken(data):
        return byte_pair_to_gguf.tiktoken_metadata(data, vocab_size)
    if llama2c.is_llama2c(data):
        model = bpe_model(llama2c.read_pieces(data), add_space_prefix=True)
        return sentencepiece_metadata(model, vocab_size)
    if not data.startswith(_SENTENCEPIECE_FIRST_BYTE):
        raise TokenizerError("this is no tokenizer that can be written into a GGUF file")
    return sentencepiece_metadata(data, vocab_size)


def sentencepiece_metadata(model: bytes, vocab_size: int) -> dict[str, Any]:
    """Return the keys for a serialised SentencePiece BPE model; see ``vocabulary_metadata``."""
    tokenizer = read_sentencepiece(model)  # also checks that the model is whole
    model_type, _ = read_specs(model)
    if model_type is not ModelType.BPE:
        raise TokenizerError(f"{tokenizer.kind} has no place in GGUF; only SentencePiece BPE has")
    pieces = padded(list(_pieces(model)), vocab_size)
    return piece_keys(pieces, tokenizer)


def padded(pieces: list[Piece], vocab_size: int) -> list[Piece]:
    """Return pieces with unused ones up to the model's number, over which they must not be."""
    check_size(len(pieces), vocab_size)
    rest = range(len(pieces), vocab_size)
    return pieces + [Piece(f"[PAD{i}]", 0.0, PieceType.UNUSED) for i in rest]


def check_size(n_tokens: int, vocab_size: int) -> None:
    """Raise ``TokenizerError`` for a tokenizer with more tokens than the model has."""
    if n_tokens > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {n_tokens} tokens, the model {vocab_size}, so they do not belong "
            f"together"
        )


def piece_keys(pieces: list[Piece], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the keys for SentencePiece pieces and the roles that a tokenizer gives them."""
    unknown = next((i for i, p in enumerate(pieces) if p.type == PieceType.UNKNOWN), None)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": unknown}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.text for piece in pieces],
        "tokenizer.ggml.scores": np.array([piece.score for piece in pieces], np.float32),
        "tokenizer.ggml.token_type": np.array([piece.type for piece in pieces], np.int32),
        **{f"tokenizer.ggml.{k}_token_id": i for k, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": tokenizer.drops_first_space,
    }


def _copied(path: Path) -> dict[str, Any]:
    """Return a GGUF file's own keys; arrays are copied out of the mapped file."""
    from pyrllama.checkpoints.gguf_file import GgufFile  # noqa: PLC0415 - a room of its own

    file = GgufFile(path)
    try:
        return {
            key: value.copy() if isinstance(value, np.ndarray) else value
            for key, value in file.metadata.items()
            if key.startswith(PREFIX)
        }
    finally:
        file.close()


def _pieces(model: bytes) -> Iterator[Piece]:
    """Yield the pieces of a model; the library that loaded it passes over fields that are odd."""
    try:
        for number, message in fields(model):
            if number == _Field.PIECES and isinstance(message, bytes):
                yield _piece(dict(fields(message)))
    except ValueError as error:
        raise TokenizerError(f"a piece of the model is broken ({error}); fetch it again") from None


def _piece(message: dict[int, int | bytes]) -> Piece:
    text, score = message.get(_Field.TEXT, b""), message.get(_Field.SCORE, _NO_SCORE)
    type_ = message.get(_Field.TYPE, PieceType.NORMAL)
    match text, score, type_:
        case bytes(), bytes(), int() if len(score) == len(_NO_SCORE):
            return Piece(text.decode(), struct.unpack("<f", score)[0], PieceType(type_))
    raise ValueError("a field of it is of another type")
