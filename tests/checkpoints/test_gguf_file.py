from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.gguf_writer import (
    Typed,
    entry,
    header,
    key_value,
    write_gguf,
)

from pyrllama.checkpoints.gguf import GgufFile
from pyrllama.errors import (
    CorruptFileError,
    TensorError,
    UnsupportedModelError,
    UnsupportedTypeError,
)
from pyrllama.quants import dequantize
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from pathlib import Path


F32, Q8_0 = int(TensorType.F32), int(TensorType.Q8_0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def with_tensors(path: Path, *entries: bytes, data: int = 4096, keys: bytes = b"") -> GgufFile:
    """Open a file whose directory has the given lines and whose data are zeros."""
    stored = header(len(entries), 1 if keys else 0) + keys + b"".join(entries)
    path.write_bytes(stored + bytes(-len(stored) % 32) + bytes(data))
    return GgufFile(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [None, 8, 32, 4096])
def test_tensors_of_a_written_file(path: Path, version: int, alignment: int | None) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (5,), "b": (3, 64), "c": (2, 3, 4), "d": (2, 3, 4, 32)}
    types = dict(
        zip(shapes, [TensorType.F32, TensorType.Q8_0, TensorType.F16, TensorType.Q4_0], strict=True)
    )
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    metadata = {} if alignment is None else {"general.alignment": alignment}
    tensors = {name: (types[name], values[name]) for name in shapes}
    file = GgufFile(write_gguf(path, metadata, tensors, version=version))
    assert file.version == version
    for name, shape in shapes.items():
        assert file.tensors[name] == TensorInfo(name, shape, types[name])
        data = file.data(name)
        assert data.shape[0] == math.prod(shape[:-1])
        assert not data.flags.owndata
        got = dequantize(types[name], data, shape[-1]).reshape(shape)
        np.testing.assert_allclose(got, values[name], atol=0.4)
        file.release(name)


def test_a_type_that_does_not_run_is_listed(path: Path) -> None:
    file = with_tensors(path, entry("t", (256, 2), int(TensorType.Q4_K), 0))
    assert file.tensors["t"] == TensorInfo("t", (2, 256), TensorType.Q4_K)
    assert file.data("t").shape == (2, 144)


def test_a_vocabulary_without_tensors(path: Path) -> None:
    file = with_tensors(path, keys=key_value("tokenizer.ggml.tokens", ["<s>", "a"]), data=0)
    assert dict(file.tensors) == {}
    with pytest.raises(TensorError, match="no tensor x in this file"):
        file.data("x")
    with pytest.raises(TensorError):
        file.release("x")


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([entry("", (8,), F32, 0)], "a tensor's name at offset 24 is empty, .*: ''"),
        (
            [entry("t", (8,), F32, 0), entry("t", (8,), F32, 32)],
            "name at offset 57 is empty, repeated .*: 't'",
        ),
        ([entry("\x1b[2J", (8,), F32, 0)], r"or unprintable: '\\x1b\[2J'"),
        (
            [entry("t" * (1 << 16), (8,), F32, 0)],
            "65536 bytes of a tensor's name .* over the limit",
        ),
        ([entry("t", (), F32, 0)], "t has 0 dimensions, not 1 to 4"),
        ([entry("t", (1,) * 5, F32, 0)], "t has 5 dimensions, not 1 to 4"),
        ([entry("t", (8, 0), F32, 0)], r"t has the empty shape \(0, 8\)"),
        ([entry("t", (48, 2), Q8_0, 0)], "t has rows of 48, no multiple of Q8_0's 32"),
        ([entry("t", (8,), F32, 4)], "t of 32 bytes at offset 4 of the data is not aligned to 32"),
        ([entry("t", (16,), F32, 0), entry("u", (8,), F32, 32)], "u .* overlaps the one before it"),
        ([entry("t", (8,), F32, 0), entry("u", (8,), F32, 0)], "overlaps the one before it"),
        ([entry("t", (1025,), F32, 0)], "t of 4100 bytes .* ends at byte 4164, .* has 4160"),
        ([entry("t", (8,), F32, 2**63)], "but the file has 4160; it is truncated"),
        ([entry("t", (2**63,) * 4, F32, 0)], "ends at byte .* but the file has 4192"),
    ],
)
def test_impossible_tensors(path: Path, entries: list[bytes], problem: str) -> None:
    with pytest.raises(CorruptFileError, match=problem):
        with_tensors(path, *entries)


@pytest.mark.parametrize("code", [4, 31, 36, 38, 77, 2**32 - 1])
def test_unknown_tensor_types_are_named(path: Path, code: int) -> None:
    with pytest.raises(UnsupportedTypeError, match=rf"the tensor blk has the type code {code}"):
        with_tensors(path, entry("blk", (32,), code, 0))


@pytest.mark.parametrize("alignment", [0, 3, 33, -32, 1 << 21, 32.0, "32"])
def test_alignment_must_be_a_power_of_two(path: Path, alignment: Any) -> None:
    value = Typed(5, alignment) if isinstance(alignment, int) else alignment
    with pytest.raises(CorruptFileError, match=r"general.alignment is .*, not a power of two"):
        with_tensors(path, keys=key_value("general.alignment", value))


def test_parts_of_a_split_file(path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"one of 3 parts .*gguf-split --merge"):
        with_tensors(path, keys=key_value("split.count", Typed(2, 3)))
    with pytest.raises(CorruptFileError, match=r"split.count is 'x'"):
        with_tensors(path, keys=key_value("split.count", "x"))
