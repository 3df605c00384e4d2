"""Vocabularies of 320 tokens in every format that tokenizers have."""

from __future__ import annotations

import base64
import io
from functools import cache
from itertools import islice, product
from typing import Any

import numpy as np
from sentencepiece import SentencePieceTrainer
from support.gguf_writer import Typed

from pyrllama.tokenizer.byte_alphabet import spell
from pyrllama.tokenizer.sentencepiece_model import Piece, PieceType, bpe_model

VOCAB = 320
_PIECES = (
    Piece("<unk>", 0.0, PieceType.UNKNOWN),
    Piece("<s>", 0.0, PieceType.CONTROL),
    Piece("</s>", 0.0, PieceType.CONTROL),
    *(Piece(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)),
    *(Piece(text, -float(i), PieceType.NORMAL) for i, text in enumerate("▁ a b c ab ▁ab".split())),
    Piece("<tool>", 0.0, PieceType.USER_DEFINED),
    *(Piece(f"[PAD{i}]", 0.0, PieceType.UNUSED) for i in range(54)),
)
_BYTES = tuple(map(spell, map(bytes, zip(range(256), strict=True))))


def sentencepiece_keys() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.text for piece in _PIECES],
        "tokenizer.ggml.scores": [piece.score for piece in _PIECES],
        "tokenizer.ggml.token_type": Typed(9, [int(piece.type) for piece in _PIECES], 5),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": "{{ messages }}",
    }


def byte_pair_keys() -> dict[str, Any]:
    tokens = [*_BYTES, "ab", "Ġab", "<|eot_id|>", "<x>"]
    types = [1] * 258 + [3, 4] + [5] * (VOCAB - len(tokens))
    tokens += [f"[PAD{i}]" for i in range(VOCAB - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b", "Ġ ab"],
        "tokenizer.ggml.token_type": Typed(9, types, 5),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 258,
    }


def llama2c_tokenizer() -> bytes:
    records = [
        np.float32(piece.score).tobytes() + np.int32(len(text)).tobytes() + text
        for piece in _PIECES
        if (text := piece.text.replace("▁", " ").encode())
    ]
    return np.int32(16).tobytes() + b"".join(records)


def sentencepiece_bpe() -> bytes:
    """Return a SentencePiece model as LLaMA 2 has it."""
    return bpe_model(_PIECES, add_space_prefix=True)


@cache
def sentencepiece_unigram() -> bytes:
    """Return a SentencePiece model of another kind, with the tables that normalise texts."""
    model = io.BytesIO()
    words = ["".join(word) for word in product("abcde", repeat=3)]
    SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCAB,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()


@cache
def tiktoken_words() -> bytes:
    """Return as many words in tiktoken's form as Llama 3 has."""
    words = [bytes([byte]) for byte in range(256)]
    words += [b"".join(pair) for pair in product(words, repeat=2)]
    words += [bytes(word) for word in islice(product(range(97, 123), repeat=4), 128_000)]
    coded = (base64.b64encode(word).decode() for word in words[:128_000])
    return "".join(f"{word} {rank}\n" for rank, word in enumerate(coded)).encode()


def _step() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _added(token: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": True, **flags}


def _bpe(tokens: list[str], merges: list[str], **settings: Any) -> dict[str, Any]:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, **settings}


def byte_level() -> dict[str, Any]:
    return {
        "version": "1.0",
        "added_tokens": [_added(258, "<s>"), _added(259, "</s>")],
        "pre_tokenizer": _step(),
        "decoder": _step(),
        "model": _bpe([*_BYTES, "ab", "Ġab"], ["a b", "Ġ ab"]),
    }


def metaspace() -> dict[str, Any]:
    tokens = [piece.text for piece in _PIECES[:265]]
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    opening = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "added_tokens": [_added(0, "<unk>"), _added(1, "<s>"), _added(2, "</s>")],
        "normalizer": {"type": "Prepend", "prepend": "▁"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": opening,
            "pair": [{"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": _bpe(tokens, ["a b", "▁ ab"], byte_fallback=True, unk_token="<unk>"),
    }
