from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.llama2c_writer import group, write_llama2c
from support.tiny_models import random_weights, tiny_config

from pyrllama.checkpoints.llama2c import Llama2cCheckpoint, looks_like
from pyrllama.errors import CorruptFileError, RllamaError, TensorError, UnknownFormatError
from pyrllama.model_config import ModelConfig
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CONFIG = tiny_config()
HEADER = struct.Struct("<7i")
SIZES = (64, 96, 2, 4, 2, 128, 256)
"""What the header of ``CONFIG`` says."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


def read(checkpoint: Llama2cCheckpoint, name: str) -> NDArray[np.float32]:
    tensor = checkpoint.read(name)
    assert tensor.info.type is TensorType.F32
    assert tensor.data.flags.c_contiguous
    return tensor.data.view("<f4").reshape(tensor.info.shape)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("version", "named"), [(0, "llama2.c, legacy"), (1, "llama2.c 1")])
def test_float_versions(path: Path, version: int, named: str, tied: bool) -> None:
    weights = random_weights(CONFIG, tied=tied)
    write_llama2c(path, CONFIG, weights, version)
    assert looks_like(path)
    with Llama2cCheckpoint(path) as checkpoint:
        assert isinstance(checkpoint, Llama2cCheckpoint)
        assert checkpoint.config == CONFIG
        assert checkpoint.format == named
        assert checkpoint.metadata == {"version": version, "group_size": 0, "tied": tied}
        assert set(checkpoint.tensors) == set(weights)
        for name, values in weights.items():
            assert checkpoint.tensors[name] == TensorInfo(name, values.shape, TensorType.F32)
            np.testing.assert_array_equal(read(checkpoint, name), values)
            checkpoint.release(name)
            assert not checkpoint.read(name).data.flags.owndata


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group_size", [4, 16, 64])
def test_int8_groups_are_read_exactly(path: Path, group_size: int, tied: bool) -> None:
    weights = random_weights(CONFIG, tied=tied)
    write_llama2c(path, CONFIG, weights, 2, group_size)
    assert looks_like(path)
    checkpoint = Llama2cCheckpoint(path)
    assert checkpoint.format == f"llama2.c 2, int8 in groups of {group_size}"
    assert checkpoint.metadata["group_size"] == group_size
    assert set(checkpoint.tensors) == set(weights)
    for name, values in weights.items():
        expected = values
        if values.ndim == 2:
            numbers, scales = group(values, group_size)
            expected = (numbers.astype(np.float32) * scales).reshape(values.shape)
            np.testing.assert_allclose(expected, values, atol=0.01)
        np.testing.assert_array_equal(read(checkpoint, name), expected)
        checkpoint.release(name)


def test_groups_may_go_across_the_ends_of_rows(path: Path) -> None:
    weights = random_weights(CONFIG)
    write_llama2c(path, CONFIG, weights, 2, group_size=64)  # a row of ffn_down has 96
    numbers, scales = group(weights["blk.1.ffn_down.weight"], 64)
    got = read(Llama2cCheckpoint(path), "blk.1.ffn_down.weight")
    np.testing.assert_array_equal(got.reshape(-1, 64), numbers * scales)


def test_a_tensor_that_is_not_there(path: Path) -> None:
    checkpoint = Llama2cCheckpoint(write_llama2c(path, CONFIG, random_weights(CONFIG, tied=True)))
    for call in (checkpoint.read, checkpoint.release):
        with pytest.raises(TensorError, match=r"no tensor output\.weight in this file"):
            call("output.weight")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("change", [-1, 1, -40_000])
def test_the_size_must_be_the_one_that_the_header_says(
    path: Path, version: int, change: int
) -> None:
    stored = write_llama2c(path, CONFIG, random_weights(CONFIG), version).read_bytes()
    path.write_bytes(stored[:change] if change < 0 else stored + bytes(change))
    said, has = len(stored), len(stored) + change
    with pytest.raises(CorruptFileError, match=rf"the file has {said} bytes, but it has {has}"):
        Llama2cCheckpoint(path)
    assert looks_like(path) is (version > 0)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ((64, 96, 2, 0, 2, 128, 256), "divides a dim of 64 among 0 heads"),
        ((64, 96, 2, 5, 2, 128, 256), "divides a dim of 64 among 5 heads"),
        ((64, 96, 2, -4, 2, 128, 256), "among -4 heads"),
        ((64, 96, 2, 4, 0, 128, 256), "0 KV heads"),
        ((64, 96, 2, 4, 3, 128, 256), "no multiple of n_kv_heads, 3"),
        ((0, 96, 2, 4, 2, 128, 256), "dim is 0"),
        ((64, -1, 2, 4, 2, 128, 256), "ffn_dim is -1"),
        ((64, 96, 2**31 - 1, 4, 2, 128, 256), "n_layers is 2147483647"),
        ((64, 96, 2, 4, 2, 0, 256), "vocab_size is 0"),
        ((64, 96, 2, 4, 2, -(2**31), 256), "vocab_size is 2147483648"),
        ((64, 96, 2, 4, 2, 128, 0), "context_length is 0"),
        ((4, 96, 2, 4, 2, 128, 256), "head_dim is 1"),
    ],
)
def test_senseless_headers(path: Path, sizes: tuple[int, ...], problem: str) -> None:
    path.write_bytes(HEADER.pack(*sizes) + bytes(1000))
    with pytest.raises(CorruptFileError, match=problem):
        Llama2cCheckpoint(path)
    assert not looks_like(path)


def with_magic(version: int, *sizes: int, tied: int = 1, group_size: int = 16) -> bytes:
    head = b"24ka" + struct.pack("<i", version) + HEADER.pack(*sizes)
    return (head + struct.pack("<Bi", tied, group_size)).ljust(256, b"\0")


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (b"24ka", "256 bytes are wanted at offset 0, but the file has 4"),
        (with_magic(1, *SIZES[:5], -128, 256), "vocab_size is -128"),
        (with_magic(1, *SIZES, tied=2), "tied flag 2"),
        (with_magic(2, *SIZES, group_size=0), "groups of 0"),
        (with_magic(2, *SIZES, group_size=-16), "groups of -16"),
        (with_magic(2, *SIZES, group_size=7), "8192 numbers of token_embd.weight make no whole"),
        (with_magic(2, *SIZES, group_size=2**30), "make no whole groups of 1073741824"),
    ],
)
def test_senseless_versioned_headers(path: Path, stored: bytes, problem: str) -> None:
    path.write_bytes(stored)
    with pytest.raises(CorruptFileError, match=problem):
        Llama2cCheckpoint(path)


def test_a_later_version(path: Path) -> None:
    path.write_bytes(with_magic(3, *SIZES))
    with pytest.raises(UnknownFormatError, match=r"this is version 3 of llama2.c's format"):
        Llama2cCheckpoint(path)


@pytest.mark.parametrize("stored", [b"\0", bytes(28), b"Once upon a time there was a little"])
def test_other_files_are_not_taken_for_llama2c(path: Path, stored: bytes) -> None:
    path.write_bytes(stored)
    assert not looks_like(path)
    assert not looks_like(path.parent)
    assert not looks_like(path.parent / "missing")
    with pytest.raises(CorruptFileError):
        Llama2cCheckpoint(path)


def test_damaged_headers_give_named_errors_or_open(path: Path) -> None:
    rng = np.random.default_rng(3)
    config = tiny_config(n_layers=1, dim=16, n_heads=2, head_dim=8, ffn_dim=16, vocab_size=16)
    outcomes = []
    for version in (0, 1, 2):
        stored = write_llama2c(path, config, random_weights(config), version).read_bytes()
        for _ in range(300):
            changed = bytearray(stored)
            for _ in range(rng.integers(1, 4)):
                changed[rng.integers(0, 45)] = rng.integers(256)
            path.write_bytes(changed[: len(changed) - int(rng.integers(0, 2))])
            outcomes.append(try_to_open(path))
    assert set(outcomes) == {"opened", "CorruptFileError", "UnknownFormatError"}


def try_to_open(path: Path) -> str:
    looks_like(path)
    try:
        with Llama2cCheckpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except RllamaError as error:
        return type(error).__name__
    return "opened"


def test_a_real_model(data: Path) -> None:
    path = data / "models" / "stories260K.bin"
    assert looks_like(path)
    checkpoint = Llama2cCheckpoint(path)
    assert checkpoint.config == ModelConfig(
        architecture="llama",
        vocab_size=512,
        dim=64,
        n_layers=5,
        n_heads=8,
        n_kv_heads=4,
        head_dim=8,
        ffn_dim=172,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        context_length=512,
    )
    assert checkpoint.metadata["tied"]
    assert len(checkpoint.tensors) == 47
    norm = read(checkpoint, "output_norm.weight")
    assert norm[:3].tolist() == pytest.approx([2.458309, 1.3673227, 1.7504382])
    for name in checkpoint.tensors:
        assert np.isfinite(read(checkpoint, name)).all()
        assert float(read(checkpoint, name).std()) > 0.01
