"""GGUF vocabularies from metadata: what is read, which defaults hold, what is refused."""

from __future__ import annotations

import math
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.gguf_writer import Typed, header, key_value
from support.vocab_cases import tokenizer_at

from pyrllama.checkpoints.gguf_metadata import StringArray
from pyrllama.errors import CorruptFileError, TokenizerError
from pyrllama.tokenizer import load_tokenizer, tokenizer_from_gguf
from pyrllama.tokenizer.byte_alphabet import spell

if TYPE_CHECKING:
    from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
INT32, FLOAT32 = 5, 6


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """Return a small SentencePiece vocabulary; a change to None takes a key away."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "ab", "▁ab", "<tool>"]
    keys = {
        "model": "llama",
        "tokens": pieces,
        "scores": [0.0] * 259 + [-3.0, -4.0, -5.0, -1.0, -2.0, 0.0],
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 5 + [USER_DEFINED],
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def bpe_metadata(**changes: Any) -> dict[str, Any]:
    """Return a small byte-pair vocabulary; a change to None takes a key away."""
    tokens = [
        *map(spell, map(bytes, zip(range(256), strict=True))),
        "ab",
        "Ġab",
        "<|eot_id|>",
        "<x>",
    ]
    keys = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": tokens,
        "merges": ["a b", "Ġ ab"],
        "token_type": [NORMAL] * 258 + [CONTROL, USER_DEFINED],
        "eos_token_id": 258,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def test_sentencepiece_vocabulary() -> None:
    tokenizer = tokenizer_from_gguf(spm_metadata())
    assert tokenizer.vocab_size == 265
    assert tokenizer.encode("ab") == [263]
    assert tokenizer.encode("é", bos=True) == [1, 259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.encode("a<tool>b") == [259, 260, 264, 261]
    assert tokenizer.decode([1, 263, 264, 259, 3 + 0xC3, 3 + 0xA9, 2]) == "ab<tool> é"
    assert tokenizer.token_bytes(0) == " \u2047 ".encode()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)


def test_the_space_prefix_can_be_off() -> None:
    tokenizer = tokenizer_from_gguf(spm_metadata(add_space_prefix=False))
    assert tokenizer.encode("ab") == [262]
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"


def test_arrays_as_a_file_has_them() -> None:
    metadata = spm_metadata(
        scores=np.array(spm_metadata()["tokenizer.ggml.scores"], np.float32),
        token_type=np.array(spm_metadata()["tokenizer.ggml.token_type"], np.int32),
    )
    for array in ("scores", "token_type"):
        metadata[f"tokenizer.ggml.{array}"].flags.writeable = False
    assert tokenizer_from_gguf(metadata).encode("ab") == [263]


def test_settings_of_a_sentencepiece_vocabulary() -> None:
    tokenizer = tokenizer_from_gguf(
        spm_metadata(bos_token_id=260, eos_token_id=261, eot_token_id=262, add_bos_token=False)
    )
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (260, 261, False)
    assert tokenizer.stop_ids == {2, 261, 262}  # "</s>" ends a text wherever it is a control token.


def test_a_piece_that_is_missing_keeps_its_id() -> None:
    pieces = spm_metadata()["tokenizer.ggml.tokens"]
    tokenizer = tokenizer_from_gguf(spm_metadata(tokens=[*pieces[:260], "", *pieces[261:]]))
    assert tokenizer.encode("ab") == [263]
    assert tokenizer.encode("ba") == [259, 261, 3 + ord("a")]
    assert tokenizer.vocab_size == 265


def test_an_unknown_token_by_its_id_alone() -> None:
    types = spm_metadata()["tokenizer.ggml.token_type"]
    tokenizer = tokenizer_from_gguf(spm_metadata(token_type=[NORMAL, *types[1:]]))
    assert tokenizer.token_bytes(0) == " \u2047 ".encode()


def test_byte_pair_vocabulary() -> None:
    tokenizer = tokenizer_from_gguf(bpe_metadata(bos_token_id=257))
    assert tokenizer.vocab_size == 260
    assert tokenizer.encode("ab ab<|eot_id|>", special=True) == [256, 257, 258]
    assert tokenizer.encode("<x>") == [259]
    assert tokenizer.encode("<|eot_id|>")[0] == ord("<")
    assert tokenizer.decode([256, 257, 258, 259]) == "ab ab<x>"
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.kind) == (257, True, "GGUF llama-bpe")
    assert tokenizer.stop_ids == {258}


def test_types_of_byte_pair_tokens() -> None:
    types = [NORMAL] * 257 + [UNUSED, USER_DEFINED, UNKNOWN]
    tokenizer = tokenizer_from_gguf(bpe_metadata(token_type=types, eos_token_id=None))
    assert tokenizer.decode([257, 258, 259]) == " ab"
    assert tokenizer.encode(" ab<x>", special=True) == [257, 259]
    # The end of a turn is a control token whatever its type.
    assert 258 not in tokenizer.encode("<|eot_id|>")
    assert tokenizer.stop_ids == {258}
    assert tokenizer.eos_id is None


@pytest.mark.parametrize(
    ("pre", "given", "expected"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("qwen2", None, False),
        ("qwen2", True, True),
    ],
)
def test_whether_prompts_start_with_bos(pre: str, given: bool | None, expected: bool) -> None:
    tokenizer = tokenizer_from_gguf(bpe_metadata(pre=pre, add_bos_token=given, bos_token_id=257))
    assert tokenizer.add_bos is expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "no vocabulary; tokenizer.ggml.model must be"),
        ({"model": "t5"}, "the vocabulary is 't5'"),
        ({"model": 7}, "model is 7, not a string"),
        ({"tokens": None}, "tokens is not an array of strings"),
        ({"tokens": []}, "tokens is not an array of strings"),
        ({"tokens": "abc"}, "tokens is not an array of strings"),
        ({"tokens": [1, 2]}, "tokens is not an array of strings"),
        ({"scores": None}, "scores is not one number for each of the 265 tokens"),
        ({"scores": [0.0] * 264}, "scores is not one number for each"),
        ({"scores": [0.0] * 266}, "scores is not one number for each"),
        ({"scores": ["x"] * 265}, "scores is not one number for each"),
        ({"scores": [math.nan] * 265}, "scores holds a number that is not finite"),
        ({"scores": [math.inf] * 265}, "scores holds a number that is not finite"),
        ({"scores": [1e300] * 265}, "scores holds a number that is not finite"),
        ({"scores": [[0.0], [0.0, 1.0]]}, "scores is not one number for each"),
        ({"scores": {}}, "scores is not one number for each"),
        ({"add_bos_token": np.zeros(2)}, "add_bos_token is .* not a truth value"),
        ({"add_space_prefix": "no"}, "add_space_prefix is 'no', not a truth value"),
        ({"token_type": [NORMAL] * 3}, "token_type is not one number for each"),
        ({"token_type": [NORMAL] * 264 + [9]}, "token_type holds a type out of 1 to 6"),
        ({"token_type": [UNKNOWN] * 265}, "not a SentencePiece model that can be used"),
        ({"token_type": [UNKNOWN] + [BYTE] * 264}, "not a SentencePiece model that can be used"),
        ({"tokens": ["a"] * 265}, "not a SentencePiece model that can be used"),
        ({"bos_token_id": 265}, "bos_token_id is 265, but there are 265 tokens"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eot_token_id": "2"}, "eot_token_id is '2'"),
        ({"unknown_token_id": True}, "unknown_token_id is True"),
    ],
)
def test_sentencepiece_vocabularies_that_contradict_themselves(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_gguf(spm_metadata(**changes))


def test_texts_as_scores_are_not_made_as_long_as_the_longest() -> None:
    texts = [b"x" * 10_000_000] + [b""] * 264
    stored = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    starts = np.r_[0, 10_000_008 + 8 * np.arange(264)]
    scores = StringArray(np.frombuffer(stored, np.uint8), starts)
    tracemalloc.start()
    with pytest.raises(TokenizerError, match="scores is not one number for each"):
        tokenizer_from_gguf(spm_metadata(scores=scores))
    assert tracemalloc.get_traced_memory()[1] < len(stored)
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": None}, r"tokenizer.ggml.pre is missing.* convert the model again .*llama-bpe"),
        ({"pre": "bert"}, "tokenizer.ggml.pre is 'bert', which is not known"),
        ({"tokens": ["a", "b", "a"]}, "tokens holds a token twice"),
        ({"merges": None}, "merges is not an array of strings"),
        ({"merges": ["a b", "b c"]}, "merges makes 'bc', which is no token"),
        ({"merges": ["a b", "ab"]}, "holds a merge that is not two words"),
        ({"merges": ["a b", "a  b"]}, "holds a merge that is not two words"),
        ({"merges": ["a b", "a b"]}, "holds a merge twice"),
        ({"token_type": [NORMAL] * 3}, "token_type is not one number for each of the 260"),
        ({"token_type": [0] * 260}, "token_type holds a type out of 1 to 6"),
        ({"bos_token_id": 260}, "bos_token_id is 260, but there are 260 tokens"),
    ],
)
def test_byte_pair_vocabularies_that_contradict_themselves(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_gguf(bpe_metadata(**changes))


def write_vocabulary(path: Path, tokens: list[str | bytes]) -> None:
    count = len(tokens)
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": Typed(9, tokens),
        "tokenizer.ggml.scores": Typed(9, [0.0] * count, FLOAT32),
        "tokenizer.ggml.token_type": Typed(9, [UNKNOWN] + [NORMAL] * (count - 1), INT32),
    }
    path.write_bytes(header(0, len(keys)) + b"".join(key_value(k, v) for k, v in keys.items()))


def test_a_vocabulary_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary"  # The name does not matter.
    write_vocabulary(path, ["<unk>", "▁", "a", "\ufffd"])
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("aa") == [1, 2, 2]
    assert tokenizer.decode([1, 3]) == "\ufffd"


def test_pieces_that_are_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, ["<unk>", "\ufffd", b"a\xff"])
    with pytest.raises(TokenizerError, match=r"vocabulary.gguf: .* not UTF-8 at index 2"):
        load_tokenizer(path)


def test_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, ["<unk>", "a"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptFileError, match=r"vocabulary\.gguf"):
        load_tokenizer(path)


def test_the_vocabulary_of_a_model(data: Path) -> None:
    tokenizer = tokenizer_at(data / "models" / "llama-2-tiny-random.gguf")
    assert tokenizer.encode("Hello world", bos=True) == [1, 15043, 3186]
