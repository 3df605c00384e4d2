"""Every tokenizer that is read, written as GGUF's metadata: the same ids must come out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.vocab_cases import random_texts

from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.errors import TokenizerError
from pyrllama.tokenizer import load_tokenizer
from pyrllama.tokenizer.byte_alphabet import spell
from pyrllama.tokenizer.gguf_vocabulary import tokenizer_from_gguf
from pyrllama.tokenizer.protobuf import bytes_field, varint_field
from pyrllama.tokenizer.sentencepiece_model import Piece, PieceType, bpe_model
from pyrllama.tokenizer.to_gguf import chat_template, vocabulary_metadata

if TYPE_CHECKING:
    from pathlib import Path

KEY = "tokenizer.ggml."
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def same_ids(path: Path, keys: dict[str, Any]) -> None:
    written, original = tokenizer_from_gguf(keys), load_tokenizer(path)
    for text in random_texts(7, 60, assigned=True):
        for special in (False, True):
            ids = original.encode(text, bos=True, special=special)
            assert written.encode(text, bos=True, special=special) == ids
    assert (written.bos_id, written.eos_id) == (original.bos_id, original.eos_id)
    assert written.add_bos == original.add_bos
    assert original.stop_ids <= written.stop_ids


def added(token: int, content: str, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": special, **flags}


def byte_level(**changes: Any) -> dict[str, Any]:
    """Return a tokenizer over bytes with two merges, as GPT-2's successors publish theirs."""
    tokens = [*map(spell, map(bytes, zip(range(256)))), "ab", "Ġab"]
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            added(258, "<|im_end|>"),
            added(259, "<think>", special=False),
            added(260, "<|eot_id|>"),
        ],
        "pre_tokenizer": step,
        "decoder": step,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": ["a b"],
        },
    } | changes


def named(name: str) -> dict[str, str]:
    return {"name": name, "template": f"the {name} one"}


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "size", "model"),
    [
        ("tokenizers/llama2/tokenizer.model", 32_000, "llama"),
        ("tokenizers/llama2/tokenizer.json", 32_000, "llama"),
        ("tokenizers/mistral/tokenizer.model.v1", 32_000, "llama"),
        ("tokenizers/llama3/tokenizer.model", 128_256, "gpt2"),
        ("models/tok512.bin", 512, "llama"),
    ],
)
def test_published_tokenizers(data: Path, name: str, size: int, model: str) -> None:
    keys = vocabulary_metadata(data / name, size)
    assert keys[KEY + "model"] == model
    assert len(keys[KEY + "tokens"]) == len(keys[KEY + "token_type"]) == size
    same_ids(data / name, keys)


def test_llama_3_gets_the_merges_that_everybody_has(data: Path) -> None:
    keys = vocabulary_metadata(data / "tokenizers/llama3/tokenizer.model", 128_256)
    theirs = GgufFile(data / "vocab" / "ggml-vocab-llama-bpe.gguf")
    assert keys[KEY + "pre"] == theirs.metadata[KEY + "pre"] == "llama-bpe"
    assert keys[KEY + "merges"] == list(theirs.metadata[KEY + "merges"])
    tokens = list(theirs.metadata[KEY + "tokens"])
    assert keys[KEY + "tokens"][:128_000] == tokens[:128_000]
    assert keys[KEY + "eot_token_id"] == 128_009
    theirs.close()


def test_space_markers_without_the_sentencepiece_model(tmp_path: Path, data: Path) -> None:
    """Scores are then made of the order of the merges."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes((data / "tokenizers/llama2/tokenizer.json").read_bytes())
    same_ids(path, vocabulary_metadata(path, 32_000))


def test_byte_level_json(tmp_path: Path) -> None:
    path = write(tmp_path, byte_level())
    keys = vocabulary_metadata(path, 264)
    assert keys[KEY + "pre"] == "gpt-2"
    assert keys[KEY + "merges"] == ["a b"]
    assert keys[KEY + "tokens"][256:] == [
        "ab", "Ġab", "<|im_end|>", "<think>", "<|eot_id|>", "[PAD261]", "[PAD262]", "[PAD263]"
    ]  # fmt: skip
    assert keys[KEY + "token_type"][256:].tolist() == [1, 1, 3, 4, 3, 5, 5, 5]
    assert keys[KEY + "eot_token_id"] == 260
    same_ids(path, keys)


def words(*patterns: str) -> dict[str, Any]:
    split = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {"type": "Sequence", "pretokenizers": [*split, {**step, "use_regex": False}]}


def test_the_pattern_of_words_gets_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, byte_level(pre_tokenizer=words(LLAMA3_WORDS)))
    keys = vocabulary_metadata(path, 262)
    assert keys[KEY + "pre"] == "smaug-bpe"  # Llama 3's with every word merged
    same_ids(path, keys)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pre_tokenizer": words(r"\d+|\D+")}, r"no name for the pattern .*\\d\+"),
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            "no name for the step 'Whitespace'|would give other ids",
        ),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "kind 'WordLevel'"),
    ],
)
def test_what_gguf_cannot_express(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        vocabulary_metadata(write(tmp_path, byte_level(**changes)), 300)


def test_a_normaliser_that_gguf_lacks_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, byte_level(normalizer={"type": "Lowercase"}))
    with pytest.raises(TokenizerError, match="would give other ids"):
        vocabulary_metadata(path, 300)


def test_more_tokens_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has 261 tokens, the model 260"):
        vocabulary_metadata(write(tmp_path, byte_level()), 260)
    late = byte_level()
    late["model"]["vocab"]["late"] = 2**32 - 1
    with pytest.raises(TokenizerError, match="has 4294967296 tokens, the model 260"):
        vocabulary_metadata(write(tmp_path, late), 260)


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        (bytes_field(2, b"12345678"), "a field of it is of another type"),
        (varint_field(3, 77), "77 is not a valid PieceType"),
        (bytes([7 << 3 | 3, 7 << 3 | 4]), "3 is not a valid WireType"),
    ],
)
def test_pieces_that_the_library_passes_over(tmp_path: Path, field: bytes, problem: str) -> None:
    path = tmp_path / "tokenizer.model"
    pieces = [Piece("<unk>", 0.0, PieceType.UNKNOWN), Piece("a", 0.0, PieceType.NORMAL)]
    model = bpe_model(pieces, add_space_prefix=True)
    path.write_bytes(bytes_field(1, bytes_field(1, b"b") + field) + model)
    with pytest.raises(TokenizerError, match=problem):
        vocabulary_metadata(path, 300)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer_config.json", {"chat_template": "{{ a }}"}, "{{ a }}"),
        ("tokenizer_config.json", {"bos_token": "<s>"}, None),
        ("tokenizer_config.json", {"chat_template": 5}, None),
        (
            "tokenizer_config.json",
            {"chat_template": [named("rag"), named("default")]},
            "the default one",
        ),
        ("chat_template.jinja", "{{ b }}", "{{ b }}"),
    ],
)
def test_chat_templates(tmp_path: Path, name: str, content: Any, expected: str | None) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert chat_template(tmp_path / "tokenizer.json") == expected


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_broken_chat_template_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(TokenizerError, match="the chat template cannot be read"):
        chat_template(tmp_path / "tokenizer.json")


def test_types_are_32_bits(tmp_path: Path) -> None:
    keys = vocabulary_metadata(write(tmp_path, byte_level()), 262)
    assert keys[KEY + "token_type"].dtype == np.int32
