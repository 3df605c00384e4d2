"""What stands for a model's weights changes with every change of the files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

from pyrllama.identity import PIECE_BYTES, SMALL_BYTES, numbers_identity, weights_identity
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)


def identity(path: Path, rope_theta: float = 10_000.0) -> bytes | None:
    """Return the identity of a checkpoint whose files are at a path."""
    checkpoint = MemoryCheckpoint(tiny_config(rope_theta=rope_theta), WEIGHTS)
    checkpoint.path = path
    return weights_identity(checkpoint)


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert identity(tmp_path / "none") is None


@pytest.mark.parametrize("size", [100, SMALL_BYTES, SMALL_BYTES + 1, 3 * SMALL_BYTES + 77])
def test_a_change_is_noticed_at_either_end(tmp_path: Path, size: int) -> None:
    file = tmp_path / "weights"
    content = np.random.default_rng(1).integers(0, 256, size, np.uint8).tobytes()
    file.write_bytes(content)
    os.utime(file, (1, 1))
    first = identity(file)
    assert first == identity(file)
    assert first != identity(file, rope_theta=500_000.0)
    for changed in (b"\0" + content[1:], content[:-1] + b"\0", content + b"\0"):
        file.write_bytes(changed)
        os.utime(file, (1, 1))
        assert identity(file) != first


def test_a_large_file_that_was_written_anew_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    content = bytearray(2 * SMALL_BYTES)
    file.write_bytes(content)
    os.utime(file, (1, 1))
    first = identity(file)
    content[PIECE_BYTES + 5] = 1  # between the pieces that are read
    file.write_bytes(content)
    assert identity(file) != first
    os.utime(file, (1, 1))
    assert identity(file) == first


def test_all_files_of_a_folder_count_but_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "0").write_bytes(b"weights")
    (tmp_path / "params.json").write_bytes(b"{}")
    first = identity(tmp_path)
    (tmp_path / ".cache").write_bytes(b"x")
    assert identity(tmp_path) == first
    (tmp_path / "part" / "0").write_bytes(b"Weights")
    assert identity(tmp_path) != first


def test_whatever_shapes_the_numbers_counts() -> None:
    identities = {
        numbers_identity(weights, kind, block_format, context)
        for weights in (b"a" * 32, b"b" * 32)
        for kind in (None, TensorType.Q4_0, TensorType.Q8_0)
        for block_format in ("cpu F16", "cpu Q8_0")
        for context in (None, 64, 128)
    }
    assert len(identities) == 36
