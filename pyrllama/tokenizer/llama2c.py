"""llama2.c's ``tokenizer.bin``: the pieces and scores of a SentencePiece BPE model.

Layout, little-endian: int32 length of the longest piece; then for every token a float32 score,
an int32 length and that many bytes.  Spaces stand plainly in the pieces, and the tokens 0, 1
and 2 are unknown, BOS and EOS.  Source: ``tokenizer.py`` and ``run.c`` of llama2.c.
"""

from __future__ import annotations

import math
import re
import struct

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.sentencepiece_model import (
    Piece,
    PieceType,
    SentencePieceTokenizer,
    bpe_model,
)

LONGEST_PIECE = 4096
"""Bytes that a piece has at most; a header over it is that of another format."""

_HEADER = struct.Struct("<i")
_RECORD = struct.Struct("<fi")
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_BOS, _EOS = 1, 2
_FIRST_PIECES = (
    Piece("<unk>", 0.0, PieceType.UNKNOWN),
    Piece("<s>", 0.0, PieceType.CONTROL),
    Piece("</s>", 0.0, PieceType.CONTROL),
)


def is_llama2c(data: bytes) -> bool:
    """Tell whether a file starts as llama2.c's tokenizers do: a small length, then a piece."""
    if len(data) < _HEADER.size + _RECORD.size:
        return False
    longest = _HEADER.unpack_from(data)[0]
    score, size = _RECORD.unpack_from(data, _HEADER.size)
    return 0 < longest <= LONGEST_PIECE and 0 < size <= longest and math.isfinite(score)


def read_llama2c(data: bytes) -> SentencePieceTokenizer:
    """Read the file's content; raises ``TokenizerError`` where it is cut or inconsistent."""
    model = bpe_model(read_pieces(data), add_space_prefix=True)
    return SentencePieceTokenizer(model, True, kind="llama2.c", bos_id=_BOS, eos_id=_EOS)


def read_pieces(data: bytes) -> list[Piece]:
    """Return the pieces with their types; raises what ``read_llama2c`` raises."""
    pieces = _read_pieces(data)
    if len(pieces) < len(_FIRST_PIECES):
        raise TokenizerError(f"only {len(pieces)} tokens; export the tokenizer again")
    pieces[: len(_FIRST_PIECES)] = _FIRST_PIECES
    return pieces


def _read_pieces(data: bytes) -> list[Piece]:
    longest = _HEADER.unpack_from(data)[0]
    pieces: list[Piece] = []
    at = _HEADER.size
    while at < len(data):
        if at + _RECORD.size > len(data):
            raise _broken(at, "is cut")
        score, size = _RECORD.unpack_from(data, at)
        text = data[at + _RECORD.size : at + _RECORD.size + max(size, 0)]
        if not 0 <= size <= longest or len(text) < size:
            raise _broken(at, f"has a length of {size} bytes")
        if not math.isfinite(score):
            raise _broken(at, f"has a score of {score}")
        pieces.append(_piece(text, score, at))
        at += _RECORD.size + size
    return pieces


def _piece(raw: bytes, score: float, at: int) -> Piece:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _broken(at, "is not UTF-8") from None
    return Piece(text, score, PieceType.BYTE if _BYTE_PIECE.fullmatch(text) else PieceType.NORMAL)


def _broken(at: int, problem: str) -> TokenizerError:
    return TokenizerError(f"the token at byte {at} {problem}; export the tokenizer again")
