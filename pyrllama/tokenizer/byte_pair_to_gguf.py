"""Byte-pair vocabularies as GGUF's metadata has them: ``tokenizer.json`` and tiktoken's files.

A byte-level vocabulary becomes ``tokenizer.ggml.model`` "gpt2": tokens in GPT-2's byte alphabet,
merges in their order, and the name of the rules by which words are cut.  One with SentencePiece's
space markers becomes "llama", where a piece's score takes the place of its merge's rank.

Source: the GGUF specification in ggml's ``docs/gguf.md``; the fields of ``tokenizer.json`` as
Hugging Face's ``tokenizers`` writes them.
"""

from __future__ import annotations

import json
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.gguf_vocabulary import tokenizer_from_gguf
from pyrllama.tokenizer.json_file import JsonTokenizer
from pyrllama.tokenizer.pretokenizers import DIGIT_PATTERN, GPT2_PATTERN, name_of_rules
from pyrllama.tokenizer.sentencepiece_model import Piece, PieceType
from pyrllama.tokenizer.tiktoken_file import TiktokenTokenizer, read_words
from pyrllama.tokenizer.to_gguf import check_size, padded, piece_keys, sentencepiece_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pyrllama.tokenizer.base import Tokenizer

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_END_OF_TURN = "<|eot_id|>"
_SENTENCEPIECE = "tokenizer.model"
"""The same vocabulary in its own format, which is preferred: it has the scores."""
_PROBE = (
    "The cat's 3 hats, didn't they cost $1234.50?\n\n  Grüße  an\tÇa,  世界! Привет мир 🦙 \r\n"
    "def f(x):\n        return x**2  # WE'LL see...   "
)
"""What both tokenizers must make the same ids of."""


def tiktoken_metadata(data: bytes, vocab_size: int) -> dict[str, Any]:
    """Return the keys for a tiktoken file; its merges follow from the ranks."""
    words, family = read_words(data)
    tokenizer = TiktokenTokenizer(words, family)
    by_rank = dict(sorted(words.items(), key=itemgetter(1)))
    pieces = [Piece(word, 0.0, PieceType.NORMAL) for word in by_rank]
    special = family.special[: vocab_size - len(pieces)]
    pieces += [Piece(text, 0.0, PieceType.CONTROL) for text in special]
    merges = list(_merges_of_ranks(by_rank))
    return _byte_level_keys(pieces, merges, family.pre, tokenizer, vocab_size)


def _merges_of_ranks(words: dict[str, int]) -> Iterator[str]:
    """Yield every pair of words that together are a word, by the ranks of these three.

    Ranks allow any two neighbours to merge into a word, so each of its halves is a merge.
    """
    for word in words:
        halves = ((word[:i], word[i:]) for i in range(1, len(word)))
        pairs = [(words[a], words[b], a, b) for a, b in halves if a in words and b in words]
        yield from (f"{left} {right}" for _, _, left, right in sorted(pairs))


def json_metadata(data: bytes, path: Path, vocab_size: int) -> dict[str, Any]:
    """Return the keys for a ``tokenizer.json``, byte-level or with space markers."""
    tokenizer = JsonTokenizer(data, path.parent)  # also checks that the file is whole
    check_size(tokenizer.vocab_size, vocab_size)  # before a list is made up to the last id
    content = json.loads(data)
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"GGUF has no place for a vocabulary of the kind {model['type']!r}")
    pieces = _pieces(content, tokenizer.spellings())
    if not model.get("byte_fallback"):
        pre = _name_of_words(content, ignore_merges=bool(model.get("ignore_merges")))
        merges = [" ".join(pair) for pair in _pairs(model)]
        return _checked(_byte_level_keys(pieces, merges, pre, tokenizer, vocab_size), tokenizer)
    if (own := path.with_name(_SENTENCEPIECE)).is_file():
        return _checked(sentencepiece_metadata(own.read_bytes(), vocab_size), tokenizer)
    return _checked(piece_keys(padded(_scored(pieces, model), vocab_size), tokenizer), tokenizer)


def _pieces(content: Mapping[str, Any], ids: Mapping[str, int]) -> list[Piece]:
    """Return the tokens in the order of their ids; holes become unused ones."""
    model = content["model"]
    types = dict.fromkeys(ids, PieceType.NORMAL)
    if model.get("byte_fallback"):
        types |= {text: PieceType.BYTE for text in ids if _BYTE_PIECE.fullmatch(text)}
    for token in content.get("added_tokens") or ():
        special = PieceType.CONTROL if token["special"] else PieceType.USER_DEFINED
        types[token["content"]] = special
    if model.get("unk_token") in types:
        types[model["unk_token"]] = PieceType.UNKNOWN
    count = 1 + max(ids.values(), default=-1)
    pieces = [Piece(f"[EMPTY_{i}]", 0.0, PieceType.UNUSED) for i in range(count)]
    for text, index in ids.items():
        pieces[index] = Piece(text, 0.0, types[text])
    return pieces


def _pairs(model: Mapping[str, Any]) -> list[list[str]]:
    """Return the merges, which are pairs, or in older files text with a space between."""
    return [m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"]]


def _scored(pieces: list[Piece], model: Mapping[str, Any]) -> list[Piece]:
    """Return pieces whose scores order them as their first merges do."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_pairs(model)):
        ranks.setdefault("".join(pair), rank)
    last = len(ranks) + 1
    return [
        piece._replace(score=-float(ranks.get(piece.text, last)))
        if piece.type == PieceType.NORMAL
        else piece
        for piece in pieces
    ]


def _name_of_words(content: Mapping[str, Any], *, ignore_merges: bool) -> str:
    """Return GGUF's name for the steps by which a ``tokenizer.json`` cuts words."""
    patterns: list[str] = []
    for step in _steps(content.get("pre_tokenizer") or {}):
        match step:
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
                patterns.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(DIGIT_PATTERN)
            case {"type": "ByteLevel"}:
                patterns += [GPT2_PATTERN] if step.get("use_regex", True) else []
            case _:
                raise TokenizerError(f"GGUF has no name for the step {step.get('type')!r}")
    name = name_of_rules(tuple(patterns), ignore_merges=ignore_merges)
    if name is None:
        raise TokenizerError(
            f"GGUF has no name for the pattern by which this tokenizer.json cuts words: "
            f"{' then '.join(patterns)[:200]}"
        )
    return name


def _steps(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if step.get("type") == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _steps(inner)
    elif step:
        yield step


def _byte_level_keys(
    pieces: list[Piece], merges: list[str], pre: str, tokenizer: Tokenizer, vocab_size: int
) -> dict[str, Any]:
    pieces = padded(pieces, vocab_size)
    end_of_turn = next((i for i, piece in enumerate(pieces) if piece.text == _END_OF_TURN), None)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "eot": end_of_turn}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [piece.text for piece in pieces],
        "tokenizer.ggml.token_type": np.array([piece.type for piece in pieces], np.int32),
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{k}_token_id": i for k, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
    }


def _checked(keys: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return keys from which the same ids come as from the tokenizer that they are made of."""
    written = tokenizer_from_gguf(keys)
    for special in (False, True):
        if written.encode(_PROBE, special=special) != tokenizer.encode(_PROBE, special=special):
            raise TokenizerError(
                "as a GGUF vocabulary it would give other ids; name the model's tokenizer.model"
            )
    return keys
