"""Opening by content, finding the tokenizer of a model, and whether both fit."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.gguf_writer import header, key_value

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer import check_tokenizer, find_tokenizer, load, load_tokenizer
from pyrllama.tokenizer.sentencepiece_model import (
    Piece,
    PieceType,
    bpe_model,
    read_sentencepiece,
)

if TYPE_CHECKING:
    from pathlib import Path


def model_of(n_tokens: int) -> bytes:
    """Return a SentencePiece model with that many tokens."""
    words = [Piece(f"word{i}", 0.0, PieceType.NORMAL) for i in range(n_tokens - 1)]
    return bpe_model([Piece("<unk>", 0.0, PieceType.UNKNOWN), *words], add_space_prefix=True)


def put(path: Path, data: bytes = b"\x00" * 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_inside_or_above_a_folder(tmp_path: Path) -> None:
    above = put(tmp_path / "tokenizer.model")
    put(tmp_path / "7B" / "consolidated.00.pth")
    assert find_tokenizer(tmp_path / "7B") == above
    inside = put(tmp_path / "7B" / "tokenizer.model")
    assert find_tokenizer(tmp_path / "7B") == inside
    assert find_tokenizer(tmp_path / "7B" / "consolidated.00.pth") == inside
    json = put(tmp_path / "7B" / "tokenizer.json")
    assert find_tokenizer(tmp_path / "7B", vocab_size=9) == json


def test_above_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "tokenizer.model")
    folder = put(tmp_path / "7B" / "params.json").parent
    monkeypatch.chdir(folder)
    found = find_tokenizer(type(folder)())
    assert found.samefile(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    "name", ["tokenizer.model.v3", "tok512.model", "qwen.tiktoken", "tok9.bin"]
)
def test_other_names(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name)
    put(tmp_path / "model.bin")
    assert find_tokenizer(tmp_path / "model.bin") == path


def test_among_several_the_one_that_fits(tmp_path: Path) -> None:
    model = put(tmp_path / "models" / "stories.bin")
    nearly = put(tmp_path / "models" / "a.model", model_of(60))
    put(tmp_path / "models" / "b.model", b"broken")
    exactly = put(tmp_path / "models" / "c.model", model_of(64))
    above = put(tmp_path / "tokenizer.model", model_of(20))
    assert find_tokenizer(model, None, 64) == exactly
    assert find_tokenizer(model, None, 128) == nearly
    assert find_tokenizer(model, None, 20) == above
    with pytest.raises(TokenizerError) as caught:
        find_tokenizer(model, None, 9999)
    for part in ("with 9999 tokens", "a.model has 60 tokens", "b.model cannot be used"):
        assert part in str(caught.value)


def test_a_model_is_not_its_own_tokenizer(tmp_path: Path) -> None:
    model = put(tmp_path / "folder" / "tok.bin")
    with pytest.raises(TokenizerError, match="found no tokenizer"):
        find_tokenizer(model)


def test_an_explicit_path_goes_first(tmp_path: Path) -> None:
    put(tmp_path / "model" / "tokenizer.model")
    other = put(tmp_path / "other" / "mine")
    assert find_tokenizer(tmp_path / "model", other) == other
    named = put(tmp_path / "other" / "tokenizer.model")
    assert find_tokenizer(tmp_path / "model", tmp_path / "other") == named
    for missing in (tmp_path / "absent", put(tmp_path / "empty" / "x").parent):
        with pytest.raises(TokenizerError, match=f"{missing}: found no tokenizer in {missing}"):
            find_tokenizer(tmp_path / "model", missing)


def test_a_gguf_file_holds_its_own(tmp_path: Path) -> None:
    put(tmp_path / "tokenizer.model")
    path = put(tmp_path / "model", header(0, 1) + key_value("tokenizer.ggml.model", "bert"))
    assert find_tokenizer(path) == path
    with pytest.raises(TokenizerError, match=r"model: the vocabulary is 'bert'"):
        load_tokenizer(path)


def test_the_error_tells_where_it_looked(tmp_path: Path) -> None:
    folder = put(tmp_path / "7B" / "params.json").parent
    with pytest.raises(TokenizerError) as caught:
        find_tokenizer(folder)
    for part in (str(folder), str(tmp_path), "tokenizer.model", "--tokenizer-path"):
        assert part in str(caught.value)
    with pytest.raises(TokenizerError, match="found no tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("n_tokens", "vocab_size", "fits"),
    [
        (32_000, 32_000, True),
        (32_003, 32_064, True),  # Rows to fill up a multiple of 64.
        (151_646, 151_936, True),  # Qwen 2.
        (32_001, 32_000, False),  # Ids without a row.
        (31_999, 32_001, False),  # No padding makes an odd size.
        (32_000, 32_768, False),  # Another tokenizer: Mistral's third.
        (32_000, 128_256, False),
        (1, 0, False),
    ],
)
def test_whether_a_tokenizer_fits(
    tmp_path: Path, n_tokens: int, vocab_size: int, fits: bool
) -> None:
    tokenizer = read_sentencepiece(model_of(2))
    tokenizer.vocab_size = n_tokens
    if fits:
        check_tokenizer(tokenizer, vocab_size, tmp_path)
        return
    with pytest.raises(TokenizerError, match=f"has {n_tokens} tokens, the model {vocab_size}"):
        check_tokenizer(tokenizer, vocab_size, tmp_path)


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04" + bytes(99), b"hello\n" * 9, b"\x00", b"\xff" * 99, b"[1, 2]", b"GGU"]
)
def test_files_of_no_known_format(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path / "tokenizer.model", data)
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.model: not a tokenizer of a known format"
    ):
        load_tokenizer(path)


def test_a_file_that_is_empty_or_missing(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="x: the file is empty"):
        load_tokenizer(put(tmp_path / "x", b""))
    with pytest.raises(TokenizerError, match="absent: cannot be read: No such file"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(TokenizerError, match="cannot be read: "):
        load_tokenizer(tmp_path / "x" / "below_a_file")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MAX_BYTES", 10)
    with pytest.raises(TokenizerError, match="11 bytes are too many for a tokenizer"):
        load_tokenizer(put(tmp_path / "tokenizer.model", b"x" * 11))


def test_importing_brings_no_backend() -> None:
    code = "import sys, pyrllama.tokenizer; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "pyrllama.tokenizer.base" in modules
    assert not {"tokenizers", "sentencepiece", "regex", "tiktoken", "numba"} & set(modules)
