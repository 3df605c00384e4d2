"""tokenizer.json with what lies beside it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from support.vocab_cases import random_texts

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer import Tokenizer, load_tokenizer
from pyrllama.tokenizer.byte_alphabet import spell

if TYPE_CHECKING:
    from pathlib import Path


def added(token: int, content: str, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": special, **flags}


def bpe(tokens: list[str], merges: list[str], **settings: Any) -> dict[str, Any]:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, **settings}


def opening(token: str, number: int) -> dict[str, Any]:
    """Return a post-processor that puts a token before every text."""
    return {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": token, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def byte_level() -> dict[str, Any]:
    """Return a tokenizer over bytes as Llama 3 and Qwen publish theirs."""
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            added(258, "<|bos|>"),
            added(259, "<|im_end|>"),
            added(260, "<think>", special=False),
        ],
        "pre_tokenizer": step,
        "decoder": step,
        "model": bpe([*map(spell, map(bytes, zip(range(256)))), "ab", "Ġab"], ["a b", "Ġ ab"]),
    }


def metaspace() -> dict[str, Any]:
    """Return a tokenizer with space markers as Llama 2 has it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    return {
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "post_processor": opening("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": bpe(pieces, ["▁ a"], byte_fallback=True, unk_token="<unk>", fuse_unk=True),
    }


def load(folder: Path, content: Any, **beside: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    for name, settings in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(settings), encoding="utf-8")
    return load_tokenizer(folder)


def test_tokens_of_bytes(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level())
    assert (tokenizer.kind, tokenizer.vocab_size) == ("tokenizer.json", 261)
    assert tokenizer.encode("ab ab") == [256, 257]
    assert tokenizer.decode([257, 258, 260, 0xC3, 0xA9]) == " ab<think>é"
    assert [*map(tokenizer.token_bytes, (257, 258, 260))] == [b" ab", b"", b"<think>"]
    for text in random_texts(5, 100):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_with_space_markers(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, metaspace())
    assert tokenizer.encode("a aé", bos=True) == [1, 261, 261, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([1, 261, 261, 3 + 0xC3, 3 + 0xA9, 2]) == "a aé"
    assert [*map(tokenizer.token_bytes, (1, 3 + 0xFF, 261))] == [b"", b"\xff", b" a"]
    for text in random_texts(6, 100):
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_special_tokens_are_text_unless_asked_for(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level())
    assert tokenizer.encode("ab<|im_end|>", special=True) == [256, 259]
    assert tokenizer.encode("<|im_end|>") == list(b"<|im_end|>")
    assert tokenizer.encode("<think>") == [260]


def test_the_choice_is_each_calls_own(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level())
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(tokenizer.encode, "<|im_end|>", special=bool(i % 2)) for i in range(400)
        ]
    plain = list(b"<|im_end|>")
    assert [call.result() for call in calls] == [plain, [259]] * 200


@pytest.mark.parametrize(
    ("beside", "facts"),
    [
        ({}, (None, 259, {259}, False)),
        ({"tokenizer_config": {"bos_token": "<|bos|>"}}, (258, 259, {259}, False)),
        (
            {"tokenizer_config": {"bos_token": {"content": "<|bos|>"}, "add_bos_token": True}},
            (258, 259, {259}, True),
        ),
        ({"tokenizer_config": {"add_bos_token": True}}, (None, 259, {259}, False)),
        ({"special_tokens_map": {"eos_token": "ab"}}, (None, 256, {256, 259}, False)),
        (
            {"config": {"bos_token_id": 258, "eos_token_id": [256, 257]}},
            (258, 256, {256, 257, 259}, False),
        ),
        (
            {"config": {"eos_token_id": 256}, "generation_config": {"eos_token_id": [257, None]}},
            (None, 257, {257, 259}, False),
        ),
        ({"config": {"bos_token_id": 9999, "eos_token_id": "x"}}, (None, 259, {259}, False)),
        (
            {"tokenizer_config": {"bos_token": "absent", "eos_token": None}},
            (None, 259, {259}, False),
        ),
    ],
)
def test_what_lies_beside(tmp_path: Path, beside: dict[str, Any], facts: tuple[Any, ...]) -> None:
    tokenizer = load(tmp_path, byte_level(), **beside)
    assert facts == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids, tokenizer.add_bos)


def test_the_post_processor_tells_bos(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, metaspace())
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    without = load(tmp_path, metaspace(), tokenizer_config={"add_bos_token": False})
    assert (without.bos_id, without.add_bos) == (1, False)
    assert without.encode("a") == [261]


def test_padding_and_truncation_are_off(tmp_path: Path) -> None:
    content = byte_level() | {
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    }
    assert load(tmp_path, content).encode("abcde") == [256, *b"cde"]


def test_holes_in_the_vocabulary(tmp_path: Path) -> None:
    content = byte_level()
    content["model"]["vocab"]["late"] = 300
    tokenizer = load(tmp_path, content)
    assert tokenizer.vocab_size == 301
    assert tokenizer.decode([*b"a", 299, 300]) == "alate"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "not a tokenizer"),
        ({"model": {"type": "Abacus"}}, "not a tokenizer"),
        ({"model": bpe(["a", "b"], ["a b"])}, "not a tokenizer"),
        ({"model": bpe(["a", "b"], ["a x"])}, "not a tokenizer"),
        ({"model": bpe(["a"], []) | {"vocab": {"a": -1}}}, "not a tokenizer"),
        ({"decoder": None}, r"decoder of this tokenizer.json \(none\) is not one that is known"),
        ({"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}, "BPEDecoder.* is not one"),
        ({"post_processor": opening("<s>", 1) | {"special_tokens": {}}}, "tokenizer"),
    ],
)
def test_tokenizers_that_are_broken(
    tmp_path: Path, changes: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: .*{message}"):
        load(tmp_path, byte_level() | changes)


@pytest.mark.parametrize(
    "data",
    [b"{", b"{}", b'{"model_type": "llama"}', b'{"a": "\xff"}', b'{"a":' * 5000, b"{\x00}"],
)
def test_json_that_is_no_tokenizer(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: the JSON is not a tokenizer"):
        load_tokenizer(path)


def test_a_role_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="the bos_token beside it is no text"):
        load(tmp_path, byte_level(), tokenizer_config={"bos_token": "\ud800"})


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_settings_that_cannot_be_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json beside it"):
        load(tmp_path, byte_level())
