"""Streaming: the same text as decoding at once, and never half a character."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vocab_cases import random_texts, tokenizer_at

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BOS, EOS = 256, 257


class ByteTokenizer(Tokenizer):
    """Every byte is a token: the hardest case for a stream."""

    vocab_size = 258
    bos_id = BOS
    eos_id = EOS
    stop_ids = frozenset({EOS})
    add_bos = True
    kind = "bytes"
    drops_first_space = True

    def _encode(self, text: str, special: bool) -> list[int]:
        return [ord(" "), *text.encode()]

    def _token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < BOS else b""


def streamed(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    """Return what each push gave and, last, what the flush gave."""
    stream = tokenizer.stream(context)
    return [*map(stream.push, ids), stream.flush()]


def test_a_character_comes_with_its_last_byte() -> None:
    ids = ByteTokenizer().encode("aé😀", bos=True)
    assert streamed(ByteTokenizer(), ids) == ["", "", "a", "", "é", "", "", "", "😀", ""]


def test_broken_bytes_are_flushed() -> None:
    assert streamed(ByteTokenizer(), b"a\xf0\x9f\x98") == ["a", "", "", "", "\ufffd"]
    assert streamed(ByteTokenizer(), b"\xf0\x9fa\xff") == ["", "", "\ufffda", "\ufffd", ""]
    stream = ByteTokenizer().stream()
    assert stream.push(0xC3) == ""
    assert stream.flush() == "\ufffd"


def test_only_the_space_of_the_beginning_is_dropped() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(list(b" a b")) == "a b"
    assert tokenizer.decode(list(b"  a")) == " a"
    assert tokenizer.decode([BOS, *b" a", EOS, *b" b"]) == "a b"
    assert "".join(streamed(tokenizer, b" b", context=[BOS])) == "b"
    assert "".join(streamed(tokenizer, b" b", context=[BOS, *b" a"])) == " b"


def test_a_context_may_end_within_a_character() -> None:
    assert streamed(ByteTokenizer(), b"\x98\x80!", context=list(b"a\xf0\x9f")) == [
        "",
        "😀",
        "!",
        "",
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 257)), st.lists(st.integers(0, 257)))
def test_a_stream_is_the_decoding_of_its_tokens(context: list[int], ids: list[int]) -> None:
    tokenizer = ByteTokenizer()
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
    # What a stream adds to its context completes the text of both.
    whole = bytes(i for i in context + ids if i < BOS).removeprefix(b" ")
    shown = tokenizer.stream()
    before = "".join(map(shown.push, context))
    assert before + "".join(streamed(tokenizer, ids, context)) == whole.decode(errors="replace")


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_valid_text_comes_whole(text: str) -> None:
    tokenizer = ByteTokenizer()
    parts = streamed(tokenizer, tokenizer.encode(text))
    assert "".join(parts) == text
    assert parts[-1] == ""
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def test_lone_surrogates_become_replacement_characters() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d")) == "\ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"
    assert tokenizer.decode(tokenizer.encode("\ufeff\udc00")) == "\ufeff\ufffd"


@pytest.mark.parametrize("token", [-1, 258, 10**9])
def test_ids_outside_the_vocabulary(token: int) -> None:
    tokenizer = ByteTokenizer()
    with pytest.raises(TokenizerError, match=f"no token {token}: .* end at 257"):
        tokenizer.decode([token])
    with pytest.raises(TokenizerError, match="no token"):
        tokenizer.stream([token])
    with pytest.raises(TokenizerError, match="no token"):
        tokenizer.stream().push(token)


@pytest.mark.parametrize(
    "path",
    [
        "tokenizers/llama2/tokenizer.model",
        "tokenizers/llama2/tokenizer.json",
        "models/tok512.bin",
        "vocab/ggml-vocab-llama-bpe.gguf",
    ],
)
def test_real_tokenizers_stream_valid_text(data: Path, path: str) -> None:
    tokenizer = tokenizer_at(data / path)
    texts = [text.replace("\u2581", " ").replace("\ufffd", "") for text in random_texts(3, 200)]
    for text in texts:
        ids = tokenizer.encode(text, bos=True)
        parts = streamed(tokenizer, ids)
        assert "".join(parts) == text == tokenizer.decode(ids)
        assert not any("\ufffd" in part for part in parts)
        middle = len(ids) // 2
        rest = "".join(streamed(tokenizer, ids[middle:], context=ids[:middle]))
        assert text.endswith(rest)


def test_the_first_space_of_a_continuation(data: Path) -> None:
    tokenizer = tokenizer_at(data / "tokenizers" / "llama2" / "tokenizer.model")
    world = tokenizer.encode("world")
    assert world == [3186]
    assert tokenizer.decode(world) == "world"
    prompt = tokenizer.encode("Hello", bos=True)
    assert "".join(streamed(tokenizer, world, prompt)) == " world"
    assert "".join(streamed(tokenizer, world, [1])) == "world"
