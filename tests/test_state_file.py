"""A saved text comes back with its part of the cache, and damage is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.fake_model import ByteTokenizer, CopyingModel, FakeModel

from pyrllama.errors import CacheFullError, PromptError, StateError
from pyrllama.llama import Llama
from pyrllama.prefix import PrefixCache

if TYPE_CHECKING:
    from pathlib import Path


def llama(identity: bytes = b"model", n_blocks: int = 8, max_seq_len: int = 200) -> Llama:
    """Return a fresh model; its weights are those of any other one of the identity."""
    model = CopyingModel(n_blocks)
    prefixes = PrefixCache(model, identity=identity)
    return Llama(model, ByteTokenizer(), max_seq_len, prefixes=prefixes)


def told(length: int = 50) -> tuple[Llama, tuple[int, ...]]:
    """Return a model and a text that it has told."""
    one = llama()
    done = one.generate("x" * length, temperature=0, max_tokens=20)
    return one, done.prompt_tokens + done.tokens


@pytest.mark.parametrize("length", [1, 12, 43, 44, 50])
def test_a_text_goes_on_in_another_process(tmp_path: Path, length: int) -> None:
    one, text = told(length)
    one.save_state(tmp_path / "state", text)
    other = llama()
    assert other.load_state(tmp_path / "state") == text
    prompt = [*text, 7, 8, 9]
    ours, theirs = (x.generate(prompt, temperature=0, max_tokens=9) for x in (one, other))
    assert ours.text == theirs.text
    assert ours.timings.reused_tokens == theirs.timings.reused_tokens == len(text) - 1
    assert other._engine.free_blocks == 8


def test_what_the_cache_has_lost_is_computed_again(tmp_path: Path) -> None:
    one, text = told()
    one.logits(range(200))
    one.save_state(tmp_path / "state", text)
    other = llama()
    assert other.load_state(tmp_path / "state") == text
    again = other.generate(text, temperature=0, max_tokens=5)
    assert again.timings.reused_tokens < len(text) - 1
    assert again.text == one.generate(text, temperature=0, max_tokens=5).text


@pytest.mark.parametrize("part", range(12))
def test_any_damage_is_an_error_and_nothing_is_believed(tmp_path: Path, part: int) -> None:
    one, text = told()
    file = tmp_path / "state"
    one.save_state(file, text)
    content = bytearray(file.read_bytes())
    content[part * (len(content) - 1) // 11] ^= 0x20
    file.write_bytes(content)
    other = llama()
    with pytest.raises(StateError, match="state: "):
        other.load_state(file)
    assert other.generate(text, temperature=0, max_tokens=2).timings.reused_tokens == 0
    assert other._engine.free_blocks == 8


@pytest.mark.parametrize("size", [0, 7, 63, 64, 200, -1])
def test_a_file_that_was_cut_is_an_error(tmp_path: Path, size: int) -> None:
    one, text = told()
    file = tmp_path / "state"
    one.save_state(file, text)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(StateError):
        llama().load_state(file)


def test_another_models_state_is_refused(tmp_path: Path) -> None:
    one, text = told()
    one.save_state(tmp_path / "state", text)
    with pytest.raises(StateError, match="another model's"):
        llama(b"other").load_state(tmp_path / "state")
    with pytest.raises(StateError, match="has 71 tokens, but the context holds 60"):
        llama(max_seq_len=60).load_state(tmp_path / "state")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    one, text = told()
    with pytest.raises(StateError, match="none: cannot be read"):
        one.load_state(tmp_path / "none")
    with pytest.raises(StateError, match="cannot be written"):
        one.save_state(tmp_path / "none" / "state", text)
    (tmp_path / "text").write_text("hello", encoding="utf-8")
    with pytest.raises(StateError, match="no state that save_state wrote"):
        one.load_state(tmp_path / "text")
    with pytest.raises(PromptError, match="no text to save"):
        one.save_state(tmp_path / "state", [])
    with pytest.raises(CacheFullError):
        one.save_state(tmp_path / "state", range(1000))
    assert [file.name for file in tmp_path.iterdir()] == ["text"]


def test_a_backend_without_readable_blocks_says_so(tmp_path: Path) -> None:
    one = Llama(FakeModel(), ByteTokenizer(), 100)
    with pytest.raises(StateError, match="this backend's KV cache cannot be saved"):
        one.save_state(tmp_path / "state", [1, 2, 3])
