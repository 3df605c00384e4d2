"""SentencePiece models: files, models built from pieces, and the wire format below them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer import load_tokenizer
from pyrllama.tokenizer.protobuf import (
    bytes_field,
    fields,
    float_field,
    varint,
    varint_field,
)
from pyrllama.tokenizer.sentencepiece_model import (
    Piece,
    PieceType,
    bpe_model,
    read_sentencepiece,
)

if TYPE_CHECKING:
    from pathlib import Path

PIECES = [
    Piece("<unk>", 0.0, PieceType.UNKNOWN),
    Piece("<s>", 0.0, PieceType.CONTROL),
    Piece("</s>", 0.0, PieceType.CONTROL),
    Piece("<|im_end|>", 0.0, PieceType.CONTROL),
    *(Piece(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)),
    Piece(" ", -1.0, PieceType.NORMAL),
    Piece("a", -2.0, PieceType.NORMAL),
    Piece(" a", -0.5, PieceType.NORMAL),
]
SPACE, A, SPACE_A = 260, 261, 262


@given(st.integers(0, sys.maxsize))
def test_numbers_survive_the_wire(value: int) -> None:
    assert list(fields(varint_field(7, value))) == [(7, value)]


def test_the_wire_format() -> None:
    # The examples of Protocol Buffers' encoding guide.
    assert varint(150) == b"\x96\x01"
    assert varint_field(1, 150) == b"\x08\x96\x01"
    assert bytes_field(2, b"testing") == b"\x12\x07testing"
    assert float_field(3, 1.0) == b"\x1d\x00\x00\x80\x3f"
    message = bytes_field(200, b"x" * 300) + float_field(3, 0.0) + b"\x09" + bytes(8)
    assert list(fields(message)) == [(200, b"x" * 300), (3, bytes(4)), (1, bytes(8))]


@pytest.mark.parametrize(
    "message",
    [
        b"\x08",
        b"\x08\x96",
        b"\x12\x07test",
        b"\x1d\x00",
        b"\x0b",
        b"\x0f",
        b"\x80" * 11,
        b"\xff" * 9,
    ],
)
def test_messages_that_are_broken(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"runs over|does not end|WireType"):
        list(fields(message))


def test_a_model_built_from_pieces_is_one_that_the_library_reads() -> None:
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(bpe_model(PIECES, add_space_prefix=True))
    assert (library.unk_id(), library.bos_id(), library.eos_id()) == (0, 1, 2)
    assert library.encode("a  a") == [SPACE_A, SPACE, SPACE_A]
    assert library.get_score(SPACE_A) == -0.5


def test_a_model_file(tmp_path: Path) -> None:
    path = tmp_path / "whatever.bin"
    path.write_bytes(bpe_model(PIECES, add_space_prefix=True))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("SentencePiece BPE", 263)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.stop_ids == {2, 3}
    assert tokenizer.encode("a\n", bos=True) == [1, SPACE_A, 4 + 10]
    assert tokenizer.decode([1, SPACE_A, 4 + 10, SPACE_A, 3, 2]) == "a\n a"
    assert [tokenizer.token_bytes(i) for i in (0, 1, 4 + 0xF0, SPACE)] == [
        " \u2047 ".encode(),
        b"",
        b"\xf0",
        b" ",
    ]


def test_control_pieces_are_recognised_on_demand() -> None:
    tokenizer = read_sentencepiece(bpe_model(PIECES, add_space_prefix=True))
    assert tokenizer.encode("<s>a<|im_end|>", special=True) == [1, SPACE_A, 3]
    assert tokenizer.encode("<unk>", special=True) == [0]
    assert not {0, 1, 2, 3} & set(tokenizer.encode("<s>a<unk><|im_end|></s>"))


def test_a_model_without_a_space_prefix() -> None:
    tokenizer = read_sentencepiece(bpe_model(PIECES, add_space_prefix=False))
    assert tokenizer.encode("a") == [A]
    assert tokenizer.decode([SPACE_A]) == " a"


def test_a_model_without_control_pieces() -> None:
    tokenizer = read_sentencepiece(bpe_model([PIECES[0], *PIECES[4:]], add_space_prefix=True))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (None, None, False)
    assert tokenizer.stop_ids == frozenset()
    assert tokenizer.encode("a", bos=True) == [SPACE_A - 3]


def test_unigram_models_keep_their_name() -> None:
    pieces = b"".join(
        bytes_field(1, bytes_field(1, text.encode()) + float_field(2, -1.0) + varint_field(3, kind))
        for text, kind in (("<unk>", PieceType.UNKNOWN), ("\u2581a", PieceType.NORMAL))
    )
    tokenizer = read_sentencepiece(pieces + bytes_field(2, b"") + bytes_field(3, b""))
    assert tokenizer.kind == "SentencePiece Unigram"
    assert tokenizer.encode("a a") == [1, 1]


def test_models_that_are_broken() -> None:
    whole = bpe_model(PIECES, add_space_prefix=True)
    first_piece = 2 + whole[1]
    for cut in (1, 5, first_piece, 100, 1000, len(whole) - 1):
        with pytest.raises(TokenizerError, match=r"cut or broken|cannot be used|that can be used"):
            read_sentencepiece(whole[:cut])
    for problem in (
        bytes_field(1, bytes_field(1, b"a\xff")) + whole,  # A piece that is not UTF-8.
        bytes_field(1, bytes_field(1, b"<s>")) + whole,  # A piece that comes twice.
        whole + bytes_field(2, varint_field(3, 9)),  # A type of model that there is not.
        whole + varint_field(3, 1),  # A number where a message must be.
        whole + bytes_field(3, bytes_field(3, b"")),  # A message where a number must be.
    ):
        with pytest.raises(TokenizerError, match="SentencePiece model"):
            read_sentencepiece(problem)
