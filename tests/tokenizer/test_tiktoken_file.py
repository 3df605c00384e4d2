"""tiktoken's vocabulary files, made up at the size of Llama 3's."""

from __future__ import annotations

from base64 import b64encode
from itertools import islice, product
from typing import TYPE_CHECKING

import pytest

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer import load_tokenizer
from pyrllama.tokenizer.tiktoken_file import is_tiktoken, read_tiktoken

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LLAMA3, QWEN = 128_000, 151_643


def words(count: int) -> list[bytes]:
    """Return every byte, every pair of bytes, and then as many threes as are wanted."""
    every = (bytes(word) for size in (1, 2, 3) for word in product(range(256), repeat=size))
    return list(islice(every, count))


def lines(tokens: Iterable[bytes]) -> bytes:
    return b"".join(b"%s %d\n" % (b64encode(token), rank) for rank, token in enumerate(tokens))


@pytest.fixture(scope="module")
def llama3() -> bytes:
    return lines(words(LLAMA3))


def test_llama_3(llama3: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(llama3)
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == 128_256
    ids = tokenizer.encode("<|begin_of_text|>ab<|eot_id|>", special=True)
    assert ids == [128_000, 256 + ord("a") * 256 + ord("b"), 128_009]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.encode("<|reserved_special_token_245|>", special=True) == [128_255]
    assert tokenizer.token_bytes(128_255) == b""


def test_qwen() -> None:
    tokenizer = read_tiktoken(lines(words(QWEN)))
    assert tokenizer.vocab_size == 151_851
    assert tokenizer.encode("<|im_start|><|im_end|>", special=True) == [151_644, 151_645]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
    assert tokenizer.encode("a", bos=True) == [97]


def test_lines_in_any_order_and_without_a_last_end(llama3: bytes) -> None:
    shuffled = b"\r\n".join(reversed(llama3.split(b"\n")[:-1]))
    assert read_tiktoken(shuffled).encode("ab") == read_tiktoken(llama3).encode("ab")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"AA== 0\n", b"", "the ranks repeat or leave holes"),
        (b"AA== 0\n", b"AA==\n", "not every line is a token and its rank"),
        (b"AA== 0\n", b"AA== 0 AQ== 1\n", "not every line is a token and its rank"),
        (b"AA== 0\n", b"AA== zero\n", "not base64 and a number"),
        (b"AA== 0\n", b"A*== 0\n", "not base64 and a number"),
        (b"AA== 0\n", b"AA= 0\n", "not base64 and a number"),
        (b"AA== 0\n", b"AA== 1\n", "the ranks repeat or leave holes"),
        (b"AA== 0\n", b"AA== 200000\n", "the ranks repeat or leave holes"),
        (b"AA== 0\n", b"AA== -1\n", "the ranks repeat or leave holes"),
        (b"AA== 0\n", b"AQ== 0\n", "1 tokens come twice"),
        (b"AA== 0\n", b"%s 0\n" % b64encode(b"four"), "no token for the byte 0x00"),
    ],
)
def test_files_that_are_broken(llama3: bytes, old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_tiktoken(llama3.replace(old, new, 1))


def test_a_vocabulary_of_nobody() -> None:
    with pytest.raises(
        TokenizerError, match=r"256 tokens.* Llama 3 \(128000\) and Qwen \(151643\)"
    ):
        read_tiktoken(lines(words(256)))


def test_a_file_that_is_cut(llama3: bytes) -> None:
    for cut in (10, len(llama3) // 2, len(llama3) - 4):
        with pytest.raises(TokenizerError, match="fetch it again"):
            read_tiktoken(llama3[:cut])


def test_what_such_a_file_starts_with() -> None:
    assert is_tiktoken(b"IQ== 0\nIg== 1\n")
    for data in (b"", b"IQ==", b"IQ== 0", b"hello world\n", b"\x0a\x0e", b'{"a": 1}\n'):
        assert not is_tiktoken(data)
