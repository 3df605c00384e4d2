"""llama2.c's tokenizer.bin."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import pytest

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer import load_tokenizer
from pyrllama.tokenizer.llama2c import is_llama2c, read_llama2c

if TYPE_CHECKING:
    from pathlib import Path

FIRST = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")]
BYTES = [(0.0, f"<0x{byte:02X}>".encode()) for byte in range(256)]
WORDS = [(-1.0, b" "), (-2.0, b"a"), (-0.5, b" a")]


def record(score: float, text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<fi", score, len(text) if length is None else length) + text


def exported(records: list[tuple[float, bytes]], longest: int = 6) -> bytes:
    return struct.pack("<i", longest) + b"".join(record(*entry) for entry in records)


WHOLE = exported(FIRST + BYTES + WORDS)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(WHOLE)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("llama2.c", 262)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.stop_ids == {2}
    assert tokenizer.encode("a  a\n", bos=True) == [1, 261, 259, 261, 3 + 10]
    assert tokenizer.decode([1, 261, 259, 261, 3 + 10]) == "a  a\n"
    assert tokenizer.encode("<s>", special=True) == [1]


def test_a_file_that_is_cut() -> None:
    for cut in range(len(WHOLE) - 40, len(WHOLE)):
        if cut in {len(WHOLE) - 10, len(WHOLE) - 19, len(WHOLE) - 28}:
            continue  # Between two tokens; the size of the vocabulary tells that one is missing.
        with pytest.raises(TokenizerError, match=r"token at byte \d+ (is cut|has a length of)"):
            read_llama2c(WHOLE[:cut])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (exported(FIRST[:2]), "only 2 tokens"),
        (exported(FIRST) + record(0.0, b"a", 7), "token at byte 44 has a length of 7 bytes"),
        (exported(FIRST) + record(0.0, b"a", -1), "token at byte 44 has a length of -1 bytes"),
        (exported(FIRST) + record(0.0, b"a", 2**31 - 1), "length of 2147483647 bytes"),
        (exported(FIRST) + record(math.nan, b"a"), "token at byte 44 has a score of nan"),
        (exported(FIRST) + record(0.0, b"\xff"), "token at byte 44 is not UTF-8"),
        (exported([*FIRST, (0.0, b"a"), (0.0, b"a")]), "not a SentencePiece model"),
        (exported([*FIRST, (0.0, b"")]), "not a SentencePiece model"),
        (exported(FIRST + BYTES[:99]), "not a SentencePiece model"),
    ],
)
def test_files_that_are_broken(data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_llama2c(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        bytes(64),
        WHOLE[:11],
        exported(FIRST, longest=0),
        exported(FIRST, longest=1 << 20),
        exported([(math.inf, b"a")]),
        exported([(0.0, b"")]),
    ],
)
def test_what_is_another_format(data: bytes) -> None:
    assert not is_llama2c(data)
    assert is_llama2c(WHOLE)
