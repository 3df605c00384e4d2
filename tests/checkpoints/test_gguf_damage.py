from __future__ import annotations

import struct
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.gguf_writer import write_model
from support.tiny_models import random_weights, tiny_config

from pyrllama.checkpoints.gguf import GgufCheckpoint
from pyrllama.errors import CorruptFileError, RllamaError, UnknownFormatError
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_every_truncation_is_a_named_error(path: Path) -> None:
    config = tiny_config()
    keys = {"tokenizer.ggml.tokens": ["a", "b"]}
    weights = random_weights(config)
    stored = write_model(path, config, weights, TensorType.F32, metadata=keys).read_bytes()
    lengths = [*range(1, 1400), *range(1400, len(stored), 997), len(stored) - 1]
    for length in lengths:
        path.write_bytes(stored[:length])
        with pytest.raises((CorruptFileError, UnknownFormatError)):
            GgufCheckpoint(path)


def test_damaged_files_give_named_errors_or_open(path: Path) -> None:
    config = tiny_config(n_layers=1, dim=32, n_heads=2, ffn_dim=32, vocab_size=32)
    keys = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.0, 1.0]}
    weights = random_weights(config)
    stored = write_model(path, config, weights, TensorType.Q8_0, metadata=keys).read_bytes()
    head = stored.index(b"output_norm") + 200
    rng = np.random.default_rng(7)
    tracemalloc.start()
    outcomes = {try_to_open(path, damaged(stored, head, rng)) for _ in range(800)}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcomes >= {"opened", "CorruptFileError", "TensorError", "UnsupportedTypeError"}
    assert peak < 4 << 20


def damaged(stored: bytes, head: int, rng: np.random.Generator) -> bytes:
    """Change a few bytes of the header, or put a large number into it, or cut out a piece."""
    changed = bytearray(stored)
    at = int(rng.integers(4, head))
    match rng.integers(3):
        case 0:
            for _ in range(rng.integers(1, 4)):
                changed[rng.integers(4, head)] = rng.integers(256)
        case 1:
            changed[at : at + 8] = struct.pack("<Q", int(rng.integers(2**63)) >> rng.integers(63))
        case _:
            del changed[at : at + int(rng.integers(1, 20))]
    return bytes(changed)


def try_to_open(path: Path, stored: bytes) -> str:
    path.write_bytes(stored)
    try:
        with GgufCheckpoint(path) as checkpoint:
            for value in checkpoint.metadata.values():
                str(value)
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except RllamaError as error:
        return type(error).__name__
    return "opened"
