"""Prompts on disk: found again by another process, and never believed when damaged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_model import CopyingModel, FakeModel, next_token

from pyrllama.core import BLOCK_TOKENS, Request, Sampling
from pyrllama.engine import Engine
from pyrllama.errors import SettingError
from pyrllama.prefix import PrefixCache
from pyrllama.prompt_folder import clear, model_folder, prune, stored_models
from pyrllama.prompt_store import HEADER, PromptStore, write_whole

IDENTITY = bytes(range(32))
NAME = bytes(range(32, 64))
BLOCK_BYTES = 256
DATA = np.arange(BLOCK_BYTES, dtype=np.uint8)
LABEL = {"model": "/models/7b.gguf", "weights": "as stored", "block_format": "fake"}


def store(folder: Path, notes: list[str] | None = None, **settings: Any) -> PromptStore:
    """Return a store of 256-byte blocks that looks at every prompt."""
    on_note = None if notes is None else notes.append
    settings = {"min_tokens": 1} | settings
    return PromptStore(folder, IDENTITY, LABEL, BLOCK_BYTES, on_note=on_note, **settings)


def saved(folder: Path, names: list[bytes], **settings: Any) -> Path:
    """Save blocks and return their folder."""
    kept = store(folder, **settings)
    for place, name in enumerate(names):
        kept.save(name, place, DATA)
    kept.close()
    return model_folder(folder, IDENTITY)


def name(number: int) -> bytes:
    """Return a block's name."""
    return bytes([number]) * 32


def test_a_block_comes_back_in_another_store(tmp_path: Path) -> None:
    folder = saved(tmp_path / "deep" / "cache", [NAME])
    kept = store(tmp_path / "deep" / "cache")
    found = kept.load(NAME)
    assert found is not None
    assert np.array_equal(found, DATA)
    assert kept.has(NAME)
    assert kept.load(name(1)) is None
    assert sorted(file.name for file in folder.iterdir()) == [f"{NAME.hex()}.kv", "model.json"]
    assert json.loads((folder / "model.json").read_text("utf-8")) == LABEL


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_the_user_can_read_what_was_asked(tmp_path: Path) -> None:
    folder = saved(tmp_path / "cache", [NAME])
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / f"{NAME.hex()}.kv").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", [*range(0, HEADER.size, 3), HEADER.size, HEADER.size + 255])
def test_any_changed_byte_is_noticed_and_the_block_written_again(
    tmp_path: Path, place: int
) -> None:
    file = saved(tmp_path, [NAME]) / f"{NAME.hex()}.kv"
    damaged = bytearray(file.read_bytes())
    damaged[place] ^= 0x40
    file.write_bytes(damaged)
    notes: list[str] = []
    kept = store(tmp_path, notes)
    assert kept.load(NAME) is None
    (note,) = notes
    assert str(file) in note
    assert note.endswith("; it is ignored")
    if place >= 8:  # behind the magic it is surely ours
        kept.save(NAME, 0, DATA)
        kept.close()
        assert store(tmp_path).load(NAME) is not None


@pytest.mark.parametrize("size", [0, 5, HEADER.size - 1, HEADER.size, HEADER.size + 100])
def test_a_file_that_was_cut_is_ignored(tmp_path: Path, size: int) -> None:
    file = saved(tmp_path, [NAME]) / f"{NAME.hex()}.kv"
    file.write_bytes(file.read_bytes()[:size])
    notes: list[str] = []
    assert store(tmp_path, notes).load(NAME) is None
    assert len(notes) == 1


def test_a_longer_file_and_another_blocks_file_are_ignored(tmp_path: Path) -> None:
    folder = saved(tmp_path, [name(1), name(2)])
    first, second = (folder / f"{name(n).hex()}.kv" for n in (1, 2))
    first.write_bytes(second.read_bytes())
    second.write_bytes(second.read_bytes() + b"\0")
    notes: list[str] = []
    kept = store(tmp_path, notes)
    assert kept.load(name(1)) is None
    assert kept.load(name(2)) is None
    assert all("is damaged" in note for note in notes)
    assert len(notes) == 2


def test_a_strangers_file_is_ignored_and_stays(tmp_path: Path) -> None:
    file = saved(tmp_path, [NAME]) / f"{NAME.hex()}.kv"
    file.write_text("my diary", encoding="utf-8")
    notes: list[str] = []
    assert store(tmp_path, notes).load(NAME) is None
    assert "is no file of this program" in notes[0]
    assert file.read_text("utf-8") == "my diary"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("place", ["tempfile.mkstemp", "pyrllama.prompt_store._write_all"])
def test_a_full_or_read_only_disk_loses_nothing_but_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, place: str
) -> None:
    folder = saved(tmp_path, [name(1)])

    def failing(*_arguments: object, **_settings: object) -> None:
        raise OSError(code, os.strerror(code))

    notes: list[str] = []
    kept = store(tmp_path, notes)
    with monkeypatch.context() as patch:
        patch.setattr(place, failing)
        for number in range(2, 6):
            kept.save(name(number), number, DATA)
        kept.close()
    (note,) = notes
    assert os.strerror(code) in note
    assert str(tmp_path) in note
    assert kept.load(name(1)) is not None
    assert not list(folder.glob(".writing-*"))
    assert sum(file.suffix == ".kv" for file in folder.iterdir()) == 1


def test_a_folder_that_is_a_file_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    notes: list[str] = []
    kept = store(tmp_path / "file", notes)
    assert kept.load(NAME) is None
    kept.save(NAME, 0, DATA)
    kept.close()
    assert "cannot be written" in notes[0]


def test_a_file_that_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, IDENTITY)
    (folder / f"{NAME.hex()}.kv").mkdir(parents=True)
    notes: list[str] = []
    assert store(tmp_path, notes).load(NAME) is None
    assert "cannot be read" in notes[0]


def test_what_was_unused_for_longest_makes_room(tmp_path: Path) -> None:
    names = [name(number) for number in range(8)]
    file_bytes = HEADER.size + BLOCK_BYTES
    folder = saved(tmp_path, names)
    for number, one in enumerate(names):
        os.utime(folder / f"{one.hex()}.kv", (1000 + number, 1000 + number))
    kept = store(tmp_path)
    kept.used(names[:2])
    prune(tmp_path, 3 * file_bytes)
    assert [one for one in names if kept.has(one)] == [names[0], names[1], names[7]]
    prune(tmp_path, 2 * file_bytes)
    assert [one for one in names if kept.has(one)] == [names[0], names[1]]
    prune(tmp_path, file_bytes)
    assert [one for one in names if kept.has(one)] == [names[0]]


def test_the_folder_never_outgrows_its_bound(tmp_path: Path) -> None:
    file_bytes = HEADER.size + BLOCK_BYTES
    folder = saved(tmp_path, [name(number) for number in range(40)], max_bytes=5 * file_bytes)
    files = [file for file in folder.iterdir() if file.suffix == ".kv"]
    assert 3 <= len(files) <= 5


def test_abandoned_temporary_files_go_and_new_ones_stay(tmp_path: Path) -> None:
    folder = saved(tmp_path, [NAME])
    old, new = folder / ".writing-old", folder / ".writing-new"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    prune(tmp_path, 1 << 30)
    assert not old.exists()
    assert new.exists()


def test_listing_and_clearing_leave_strangers_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path, [name(1), name(2)])
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "v1-of-my-thesis").mkdir()
    (folder / "mine.kv").write_text("mine", encoding="utf-8")
    (model,) = stored_models(tmp_path)
    assert (model.blocks, model.bytes) == (2, 2 * (HEADER.size + BLOCK_BYTES))
    assert model.label == LABEL
    assert model.oldest_use <= model.latest_use
    assert clear(tmp_path) == model.bytes
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "notes.txt", "v1-" + IDENTITY.hex()[:32], "v1-of-my-thesis",
    ]  # fmt: skip
    assert [file.name for file in folder.iterdir()] == ["mine.kv"]
    (folder / "mine.kv").unlink()
    assert clear(tmp_path) == 0
    assert not folder.exists()


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert stored_models(tmp_path / "none") == []
    assert clear(tmp_path / "none") == 0


def test_a_damaged_label_is_no_label(tmp_path: Path) -> None:
    folder = saved(tmp_path, [NAME])
    for content in ("{", "[1]"):
        (folder / "model.json").write_text(content, encoding="utf-8")
        assert stored_models(tmp_path)[0].label == {}


def test_a_bound_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="prompt_cache_bytes is 0"):
        store(tmp_path, max_bytes=0)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_whole(file, [b"old"])
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "no")))
    with pytest.raises(OSError, match="no"):
        write_whole(file, [b"new"])
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


# --- under an engine --------------------------------------------------------------------------


def generate(folder: Path, prompt: list[int], **settings: Any) -> tuple[tuple[int, ...], int]:
    """Generate in a fresh engine; return the text and the tokens of the prompt it reused."""
    model = CopyingModel(n_blocks=32, max_batch_tokens=64)
    prefixes = PrefixCache(model, identity=IDENTITY, store=store(folder, **settings))
    engine = Engine(model, 1024, prefixes=prefixes)
    generation = engine.submit(Request(tuple(prompt), Sampling(temperature=0), 10))
    while generation.finish is None:
        engine.step()
    engine.close()
    assert generation.reused is not None
    return generation.tokens, generation.reused


def expected(prompt: list[int]) -> tuple[int, ...]:
    """Return the fake model's continuation of 10 tokens, computed without any cache."""
    text = list(prompt)
    for _ in range(10):
        text.append(next_token(text))
    return tuple(text[len(prompt) :])


@pytest.mark.parametrize("length", [1, 32, 33, 64, 300])
def test_a_prompt_is_found_by_the_next_engine(tmp_path: Path, length: int) -> None:
    prompt = [n % 250 for n in range(length)]
    whole_blocks = (length - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert generate(tmp_path, prompt) == (expected(prompt), 0)
    assert generate(tmp_path, prompt) == (expected(prompt), whole_blocks)
    other = [*prompt[:100], 9, 9]
    assert generate(tmp_path, other) == (expected(other), min(length, 100) // 32 * 32)


def test_short_prompts_are_not_kept(tmp_path: Path) -> None:
    prompt = list(range(100))
    assert generate(tmp_path, prompt, min_tokens=256)[1] == 0
    assert generate(tmp_path, prompt, min_tokens=256)[1] == 0
    assert stored_models(tmp_path) == []


def test_a_block_that_is_missing_or_damaged_ends_what_is_reused(tmp_path: Path) -> None:
    prompt = [n % 250 for n in range(200)]
    generate(tmp_path, prompt)
    folder = model_folder(tmp_path, IDENTITY)
    files = sorted(
        (file for file in folder.iterdir() if file.suffix == ".kv"),
        key=lambda file: int.from_bytes(file.read_bytes()[12:16], "little"),
    )
    assert len(files) == 6
    files[3].write_bytes(files[3].read_bytes()[:-1])
    assert generate(tmp_path, prompt) == (expected(prompt), 96)
    assert generate(tmp_path, prompt) == (expected(prompt), 192)
    files[1].unlink()
    assert generate(tmp_path, prompt) == (expected(prompt), 32)


def test_a_model_whose_blocks_cannot_be_read_has_no_store(tmp_path: Path) -> None:
    engine = Engine(FakeModel(), 100, prefixes=PrefixCache(FakeModel(), store=store(tmp_path)))
    generation = engine.submit(Request(tuple(range(60)), Sampling(temperature=0), 3))
    while generation.finish is None:
        engine.step()
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_write_the_same_folder_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, test_prompt_store as t; from pathlib import Path\n"
        "prompt = [n % 250 for n in range(700)]\n"
        "for _ in range(5):\n"
        "    text, reused = t.generate(Path(sys.argv[1]), prompt, max_bytes=12_000)\n"
        "    assert text == t.expected(prompt)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert not list(model_folder(tmp_path, IDENTITY).glob(".writing-*"))
