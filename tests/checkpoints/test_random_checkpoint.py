from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.tiny_models import tiny_config

from pyrllama.checkpoints import random
from pyrllama.checkpoints.random import SHAPES, RandomCheckpoint
from pyrllama.errors import SettingError, TensorError
from pyrllama.models.llama import check_config, check_tensors, n_parameters
from pyrllama.quants import WRITABLE, dequantize, row_bytes
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIG = tiny_config(vocab_size=256)


def numbers(checkpoint: RandomCheckpoint, name: str) -> NDArray[np.float32]:
    tensor = checkpoint.read(name)
    return dequantize(tensor.info.type, tensor.data, tensor.info.shape[-1])


@pytest.mark.parametrize("type_", sorted(WRITABLE), ids=lambda type_: type_.name)
def test_matrices_are_random_and_norms_are_one(
    type_: TensorType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "_POOL_NUMBERS", 1 << 16)
    config = tiny_config(vocab_size=256, dim=256, head_dim=64, ffn_dim=512)
    checkpoint = RandomCheckpoint(config, type_)
    check_tensors(checkpoint.path, config, checkpoint.tensors)
    assert checkpoint.format == f"random weights, {type_.name}"
    for name, info in checkpoint.tensors.items():
        x = numbers(checkpoint, name)
        if len(info.shape) == 1:
            assert info.type is TensorType.F32
            assert (x == 1.0).all()
            continue
        assert info.type is type_
        assert checkpoint.read(name).data.shape == (info.shape[0], row_bytes(type_, info.shape[1]))
        assert np.isfinite(x).all()
        assert float(x.std()) * math.sqrt(info.shape[1]) == pytest.approx(1.0, rel=0.1)
        checkpoint.release(name)
    checkpoint.close()


def test_the_seed_decides_in_whatever_order() -> None:
    names = list(RandomCheckpoint(CONFIG, TensorType.Q8_0).tensors)
    first, again = (RandomCheckpoint(CONFIG, TensorType.Q8_0, seed=5) for _ in range(2))
    other = RandomCheckpoint(CONFIG, TensorType.Q8_0, seed=6)
    expected = {name: first.read(name).data for name in names}
    for name in reversed(names):
        np.testing.assert_array_equal(again.read(name).data, expected[name])
    assert not np.array_equal(other.read(names[0]).data, expected[names[0]])
    same_shape = [expected[f"blk.{i}.{n}.weight"] for i in (0, 1) for n in ("attn_q", "attn_k")]
    assert not np.array_equal(same_shape[0], same_shape[2])
    assert not np.array_equal(same_shape[1], same_shape[3])


def test_more_rows_than_are_made_repeat() -> None:
    config = tiny_config(vocab_size=40_000)
    checkpoint = RandomCheckpoint(config, TensorType.Q4_0)
    data = checkpoint.read("token_embd.weight").data
    assert data.shape == (40_000, 36)
    np.testing.assert_array_equal(data[:5], data[(1 << 21) // 64 :][:5])


@pytest.mark.parametrize(
    ("shape", "billions"),
    [
        ("7b", 6.74),
        ("13b", 13.02),
        ("30b", 32.53),
        ("65b", 65.29),
        ("1b", 1.24),
        ("110m", 0.11),
        ("30b-a3b", 30.53),
    ],
)
def test_shapes_have_the_published_numbers_of_weights(shape: str, billions: float) -> None:
    checkpoint = RandomCheckpoint(SHAPES[shape], TensorType.Q4_0)
    tied = "output.weight" not in checkpoint.tensors
    assert tied is (shape in {"1b", "110m"})
    check_config(checkpoint.path, SHAPES[shape])
    assert n_parameters(SHAPES[shape], tied=tied) / 1e9 == pytest.approx(billions, rel=0.005)


def test_tied_can_be_said() -> None:
    assert "output.weight" not in RandomCheckpoint(CONFIG, TensorType.F16, tied=True).tensors
    untied = RandomCheckpoint(SHAPES["110m"], TensorType.F16, tied=False)
    assert untied.tensors["output.weight"] == TensorInfo(
        "output.weight", (32_000, 768), TensorType.F16
    )


def test_types_that_cannot_be() -> None:
    with pytest.raises(SettingError, match="'IQ2_S', but it must be one of F32"):
        RandomCheckpoint(CONFIG, TensorType.IQ2_S)
    with pytest.raises(SettingError, match="row length is 48"):
        RandomCheckpoint(tiny_config(dim=48, n_heads=3, n_kv_heads=1), TensorType.Q4_0)


def test_a_tensor_that_is_not_there() -> None:
    with pytest.raises(TensorError, match="no tensor rope_freqs"):
        RandomCheckpoint(CONFIG, TensorType.F32).read("rope_freqs.weight")


def test_single_tensors_may_have_types_of_their_own() -> None:
    types = {"output.weight": TensorType.Q6_K, "blk.0.attn_v.weight": TensorType.Q8_0}
    config = tiny_config(dim=256, n_heads=4, n_kv_heads=4)
    checkpoint = RandomCheckpoint(config, TensorType.F16, types=types)
    found = {name: info.type for name, info in checkpoint.tensors.items()}
    assert {name: found[name] for name in types} == types
    assert found["blk.0.attn_k.weight"] is TensorType.F16
    assert found["output_norm.weight"] is TensorType.F32
    rows = config.vocab_size, row_bytes(TensorType.Q6_K, 256)
    assert checkpoint.read("output.weight").data.shape == rows
    with pytest.raises(SettingError, match="IQ2_S"):
        RandomCheckpoint(config, TensorType.F16, types={"output.weight": TensorType.IQ2_S})
