"""What ``load`` sets up beside a model: the prompt cache of a real checkpoint, and drafts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.fake_model import ByteTokenizer
from support.tiny_models import MemoryCheckpoint, chunk_of, random_weights, tiny_config

import pyrllama
from pyrllama.block_bytes import block_memory
from pyrllama.core import Batch
from pyrllama.data import default_model_path
from pyrllama.errors import BackendError, DeviceError, SettingError
from pyrllama.prompt_folder import stored_models
from pyrllama.reference.backend import ReferenceBackend
from pyrllama.reuse import open_prefixes, open_speculation
from pyrllama.split import SplitModel

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.core import Completion

CONFIG = tiny_config()
CHECKPOINT = MemoryCheckpoint(CONFIG, random_weights(CONFIG))
PROMPT = "Once upon a time there was a dog. " * 30


def ask(folder: Path | None, **settings: Any) -> tuple[Completion, list[str]]:
    """Load the package's model and continue a prompt of some 270 tokens."""
    notes: list[str] = []
    with pyrllama.load(
        default_model_path(), prompt_cache=folder, on_note=notes.append, max_seq_len=400, **settings
    ) as llama:
        return llama.generate(PROMPT, temperature=0, max_tokens=12), notes


def test_a_prompt_is_reused_by_the_same_model_alone(tmp_path: Path) -> None:
    first, notes = ask(tmp_path)
    n_tokens = first.timings.prompt_tokens
    assert 256 < n_tokens < 380
    again, _ = ask(tmp_path)
    assert again.timings.reused_tokens == (n_tokens - 1) // 32 * 32
    assert again.text == first.text == ask(None)[0].text
    assert notes == []
    for settings in ({"kv_type": "f32"}, {"quantize": "q8_0"}):
        assert ask(tmp_path, **settings)[0].timings.reused_tokens == 0
    assert len(stored_models(tmp_path)) == 3
    label = stored_models(tmp_path)[-1].label
    assert label["model"] == str(default_model_path().resolve())


def test_lookup_gives_the_same_text(tmp_path: Path) -> None:
    with pyrllama.load(default_model_path(), lookup=True, max_seq_len=400) as llama:
        drafted = llama.generate(PROMPT, temperature=0.7, seed=5, max_tokens=60)
    with pyrllama.load(default_model_path(), max_seq_len=400) as llama:
        plain = llama.generate(PROMPT, temperature=0.7, seed=5, max_tokens=60)
    assert drafted.tokens == plain.tokens


def test_a_model_drafts_for_itself() -> None:
    with pyrllama.load(
        default_model_path(), draft_model=default_model_path(), max_seq_len=400
    ) as llama:
        drafted = llama.generate(PROMPT, temperature=0, max_tokens=40)
    assert (
        drafted.tokens
        == pyrllama.load(default_model_path(), max_seq_len=400)
        .generate(PROMPT, temperature=0, max_tokens=40)
        .tokens
    )


def test_bad_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SettingError, match=r"prompt_cache is .* must be a folder"):
        ask(tmp_path / "file")
    with pytest.raises(SettingError, match="lookup is True"):
        open_speculation(CONFIG, ByteTokenizer(), 9, "cpu", 1, tmp_path, lookup=True)


def test_weights_without_a_file_are_not_kept(tmp_path: Path) -> None:
    notes: list[str] = []
    model = ReferenceBackend(CHECKPOINT, 96)
    open_prefixes(model, CHECKPOINT, None, tmp_path, 1 << 20, notes.append, max_seq_len=64)
    assert notes == ["prompts are not kept: this backend's KV cache cannot be saved"]


# --- blocks of the other backends -------------------------------------------------------------


class Second:
    """Stands for a device: a backend with the figures that a split model asks for."""

    def __init__(self, model: ReferenceBackend) -> None:
        self._model = model
        for name in ("n_blocks", "max_batch_tokens", "weight_bytes", "decode_bytes"):
            setattr(self, name, getattr(model, name))
        self.kv_bytes_per_token = model.kv_bytes_per_token


class Readable(Second):
    """A device whose blocks can be read."""

    block_format = "device"

    def read_block(self, block: int) -> Any:
        return self._model.read_block(block)

    def write_block(self, block: int, data: Any) -> None:
        self._model.write_block(block, data)


def test_blocks_of_the_reference_come_back() -> None:
    tokens = list(range(70))
    model = ReferenceBackend(CHECKPOINT, 192)
    whole = model.forward(Batch((chunk_of(tokens),)))
    for block in range(3):
        model.write_block(block + 3, model.read_block(block))
    again = model.forward(Batch((chunk_of(tokens[40:], 40, first_block=3),)))
    assert again == pytest.approx(whole[40:], abs=1e-4)
    with pytest.raises(BackendError, match="are given"):
        model.write_block(0, model.read_block(0)[1:])


def test_a_split_model_joins_both_parts() -> None:
    parts = [ReferenceBackend(CHECKPOINT, 96) for _ in range(2)]
    for part, tokens in zip(parts, (range(40), range(40, 80)), strict=True):
        part.forward(Batch((chunk_of(list(tokens)),)))
    split = SplitModel(parts[0], Readable(parts[1]))  # type: ignore[arg-type]
    assert split.block_format == f"{parts[0].block_format} + device"
    data = split.read_block(0)
    assert data.nbytes == split.kv_bytes_per_token * 32
    split.write_block(1, data)
    for part, other in itertools.pairwise([*parts, parts[0]]):
        assert np.array_equal(part.read_block(0), part.read_block(1))
        assert not np.array_equal(part.read_block(0), other.read_block(0))


def test_a_split_model_whose_device_cannot_is_no_memory() -> None:
    part = ReferenceBackend(CHECKPOINT, 96)
    split = SplitModel(part, Second(part))  # type: ignore[arg-type]
    assert split.block_format is None
    assert block_memory(split) is None
    with pytest.raises(DeviceError, match="cannot be read"):
        split.read_block(0)
