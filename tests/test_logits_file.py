"""Saved logits: what llama.cpp wrote, what is written here, and damage."""

from __future__ import annotations

import math
import struct
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_model import BOS, ByteTokenizer
from support.tiny_models import GOLDEN

import pyrllama
from pyrllama.errors import (
    CheckpointError,
    ComparisonError,
    CorruptFileError,
    ModelNotFoundError,
    SettingError,
    UnknownFormatError,
)
from pyrllama.logits_file import LogitsFile, is_logits_file, saved_logits
from pyrllama.text_chunks import TextChunks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

VOCAB = 259
TEXT = TextChunks(np.arange(36) * 7 % VOCAB, context=16, count=2, bos=None)
OF_LLAMA_CPP = GOLDEN / "stories260K.logits"
"""Two chunks of 16 tokens by ``llama-perplexity -c 16 --kl-divergence-base`` (0c1e570) of the
model of 260K parameters in F32, on ``STORY``."""
STORY = """\
Once upon a time, there was a little dog. He had a red ball and liked to play with it every day.
One day, the ball was gone.
"""


def noise(seed: int, scale: float = 2.0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((TEXT.scored, VOCAB)) * scale + 5).astype(np.float32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a file of two chunks of noise."""
    path = tmp_path / "noise.logits"
    with saved_logits(path, TEXT, VOCAB) as tap:
        tap(noise(0))
        tap(noise(1)[:3])
        tap(noise(1)[3:])
    return path


def plain_row(row: NDArray[np.float32]) -> tuple[float, float, list[int]]:
    """Return step, lowest log-probability and numbers of a row as the form is described."""
    logits = row.astype(np.float64).tolist()
    highest = max(logits)
    lowest = max(min(logits), highest - 16)
    normaliser = highest + math.log(math.fsum(math.exp(x - highest) for x in logits))
    step = (highest - lowest) / 65535
    numbers = [round((max(x, lowest) - lowest) / step) for x in logits]
    return step, lowest - normaliser, numbers


@pytest.mark.parametrize("scale", [2.0, 9.0])
def test_the_form_is_that_of_llama_cpp(tmp_path: Path, scale: float) -> None:
    path = tmp_path / "f"
    with saved_logits(path, TEXT, VOCAB) as tap:
        tap(noise(0, scale))
        tap(noise(1, scale))
    content = path.read_bytes()
    assert content[:20] == b"_logits_" + struct.pack("<Iii", 16, VOCAB, 2)
    assert np.frombuffer(content, "<i4", 32, 20).tolist() == TEXT.tokens[:32].tolist()
    row_bytes = 2 * (4 + VOCAB + 1)  # of an odd vocabulary one number stands empty
    assert len(content) == 20 + 4 * 32 + 2 * 7 * row_bytes
    for index, row in enumerate((*noise(0, scale), *noise(1, scale))):
        at = 20 + 4 * 32 + index * row_bytes
        step, lowest, numbers = plain_row(row)
        assert struct.unpack_from("<ff", content, at) == pytest.approx((step, lowest), rel=1e-6)
        found = np.frombuffer(content, "<u2", VOCAB + 1, at + 8).astype(int)
        assert np.abs(found[:VOCAB] - numbers).max() <= 1  # the step is rounded to float32
        assert found[VOCAB] == 0


def test_what_is_written_is_read(saved: Path) -> None:
    with closing(LogitsFile(saved)) as file:
        assert (file.context, file.vocab_size, file.n_chunks) == (16, VOCAB, 2)
        assert file.tokens.tolist() == TEXT.tokens[:32].tolist()
        for number in range(2):
            found = np.vstack(list(file.batches(TEXT, number)))
            logits = noise(number).astype(np.float64)
            expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            np.testing.assert_allclose(found, expected, atol=2e-4)


def test_one_logit_for_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with saved_logits(path, TEXT, VOCAB) as tap:
        tap(np.zeros((14, VOCAB), np.float32))
    with closing(LogitsFile(path)) as file:
        found = np.vstack(list(file.batches(TEXT, 1)))
    np.testing.assert_allclose(found, -math.log(VOCAB), rtol=1e-6)


def test_a_file_of_llama_cpp(data: Path, tmp_path: Path) -> None:
    stories = data / "models" / "stories260K.bin"
    with pyrllama.load(stories, backend="reference") as llama:
        for text in (None, STORY):
            result = llama.divergence(text, OF_LLAMA_CPP)
            assert result.model.tokens == 14
            assert abs(result.mean) < 1e-5
            assert result.maximum < 1e-4
            assert result.same_top_share == 1
            assert result.ratio == pytest.approx(1, abs=5e-4)
            assert result.base.perplexity == pytest.approx(6.6505, abs=1e-4)
        path = tmp_path / "ours"
        llama.perplexity(STORY, context=16, save_logits=path)
    ours, theirs = path.read_bytes(), OF_LLAMA_CPP.read_bytes()
    assert len(ours) == len(theirs)
    assert ours[:148] == theirs[:148]  # the head and all tokens
    # Its cache is in float16 and the reference's is not.
    np.testing.assert_allclose(log_probabilities(ours), log_probabilities(theirs), atol=0.03)


def log_probabilities(content: bytes) -> NDArray[np.float32]:
    rows = np.frombuffer(content, "<u2", offset=148).reshape(14, 4 + 512)
    heads = rows[:, :4].copy().view("<f4")
    decoded: NDArray[np.float32] = rows[:, 4:] * heads[:, :1] + heads[:, 1:]
    return np.maximum(decoded, -14)  # below, the rows end at e^-16 of their likeliest token


def test_what_is_a_file_of_logits(saved: Path, tmp_path: Path) -> None:
    assert is_logits_file(saved)
    assert not is_logits_file(tmp_path)
    assert not is_logits_file(tmp_path / "nothing")
    (tmp_path / "text").write_text("_logit")
    assert not is_logits_file(tmp_path / "text")


def test_an_interrupted_file_vanishes(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), saved_logits(tmp_path / "f", TEXT, VOCAB) as tap:
        tap(noise(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="cannot be written: No such file"),
        saved_logits(tmp_path / "no" / "f", TEXT, VOCAB),
    ):
        pass


# --- what it is compared on -------------------------------------------------------------------

SPOKEN = "Once upon a time there was a dog. The dog had a ball."


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Return a file of three chunks of ``SPOKEN``, of which nobody asks the logits."""
    tokens = np.array(ByteTokenizer().encode(SPOKEN, bos=True))
    path = tmp_path / "spoken.logits"
    with saved_logits(path, TextChunks(tokens, 16, 3, BOS), VOCAB) as tap:
        tap(np.zeros((21, VOCAB), np.float32))
    return path


def test_the_text_is_the_files_own(spoken: Path) -> None:
    tokenizer = ByteTokenizer()
    with closing(LogitsFile(spoken)) as file:
        own = file.text(tokenizer, None, 64, context=None, chunks=None)
        assert (own.count, own.context, own.bos) == (3, 16, BOS)
        assert own.inputs(1) == [BOS, *SPOKEN[16:31].encode()]
        assert file.text(tokenizer, None, 64, context=16, chunks=2).count == 2
        for text, count in ((SPOKEN, 3), (SPOKEN * 2, 3), (SPOKEN[:40], 2)):
            given = file.text(tokenizer, text, 64, context=None, chunks=None)
            assert given.count == count
            assert given.tokens.tolist() == own.tokens.tolist()


def test_another_text(spoken: Path) -> None:
    other = SPOKEN.replace("dog", "cat")
    with (
        closing(LogitsFile(spoken)) as file,
        pytest.raises(ComparisonError, match="was saved of another text from token 30 on"),
    ):
        file.text(ByteTokenizer(), other, 64, context=None, chunks=None)


def test_another_context(spoken: Path) -> None:
    with closing(LogitsFile(spoken)) as file:
        with pytest.raises(ComparisonError, match="was saved at a context of 16 tokens"):
            file.text(ByteTokenizer(), None, 64, context=32, chunks=None)
        with pytest.raises(SettingError, match="context is 16, but it must be from 8 to 12"):
            file.text(ByteTokenizer(), None, 12, context=None, chunks=None)
        with pytest.raises(SettingError, match="chunks is 0"):
            file.text(ByteTokenizer(), None, 64, context=None, chunks=0)


# --- damage -----------------------------------------------------------------------------------


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(ModelNotFoundError):
        LogitsFile(path)
    for content in (b"x", b"_logits", b"GGUF" * 10):
        path.write_bytes(content)
        with pytest.raises(UnknownFormatError, match="this is no file of logits"):
            LogitsFile(path)


@pytest.mark.parametrize("length", [8, 12, 19, 20, 100, 147, 148, 1000, -1])
def test_a_truncated_file(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(CorruptFileError):
        LogitsFile(saved)


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (8, 0, "its context is 0"),
        (8, 7, "its context is 7"),
        (8, 17, "it was not written to its end"),
        (8, -1, "its context is 4294967295"),
        (12, 0, "its vocabulary is 0"),
        (12, -1, "its vocabulary is -1"),
        (12, 2**31 - 1, "its vocabulary is 2147483647"),
        (16, 0, "its number of chunks is 0"),
        (16, 2**31 - 1, "it was not written to its end"),
        (24, VOCAB, "tokens outside its vocabulary of 259"),
        (24, -1, "tokens outside its vocabulary of 259"),
    ],
)
def test_impossible_sizes(saved: Path, offset: int, value: int, problem: str) -> None:
    damage(saved, lambda content: struct.pack_into("<i", content, offset, value))
    with pytest.raises(CorruptFileError, match=problem):
        LogitsFile(saved)


@pytest.mark.parametrize("head", [(math.nan, 0), (1, math.nan), (-1, 0), (math.inf, 0), (1, 3)])
def test_impossible_probabilities(saved: Path, head: tuple[float, float]) -> None:
    at = 148 + 7 * 2 * (4 + VOCAB + 1)
    damage(saved, lambda content: struct.pack_into("<ff", content, at, *head))
    with closing(LogitsFile(saved)) as file:
        assert len(list(file.batches(TEXT, 0))) == 1
        with pytest.raises(CorruptFileError, match="chunk 2 has numbers that are no log-prob"):
            list(file.batches(TEXT, 1))


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
