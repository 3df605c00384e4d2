from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.gguf_writer import (
    model_metadata,
    write_gguf,
    write_model,
)
from support.tiny_models import Weights, random_weights, tiny_config

from pyrllama.checkpoints.gguf import GgufCheckpoint
from pyrllama.errors import (
    ModelNotFoundError,
    TensorError,
    UnsupportedTypeError,
)
from pyrllama.model_config import Experts
from pyrllama.quants import row_bytes
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path


CONFIG = tiny_config()
MIXTRAL = tiny_config(experts=Experts(5, 2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_experts_that_are_stored_one_by_one(path: Path) -> None:
    weights = random_weights(MIXTRAL)
    write_model(path, MIXTRAL, one_by_one(weights))
    with GgufCheckpoint(path) as checkpoint:
        assert checkpoint.tensors.keys() == weights.keys()
        for name, values in weights.items():
            assert checkpoint.tensors[name].shape == values.shape
            stored = checkpoint.read(name).data.view(np.float32)
            np.testing.assert_array_equal(stored.ravel(), values.ravel(), name)
            checkpoint.release(name)


def test_experts_that_do_not_fit_together(path: Path) -> None:
    weights = one_by_one(random_weights(MIXTRAL))
    first, last = (f"blk.1.ffn_up.{expert}.weight" for expert in (0, 4))
    without = {name: values for name, values in weights.items() if name != first}
    write_model(path, MIXTRAL, without)
    with pytest.raises(TensorError, match=rf"lacks {first}, but has later ones"):
        GgufCheckpoint(path)
    without = {name: values for name, values in weights.items() if name != last}
    write_model(path, MIXTRAL, without)
    with pytest.raises(TensorError, match=r"blk.1.ffn_up_exps.weight of shape \(4, 96, 64\)"):
        GgufCheckpoint(path)
    write_model(path, MIXTRAL, weights | {last: weights[last][1:]})
    with pytest.raises(TensorError, match=r"experts of blk.1.ffn_up_exps.weight have different"):
        GgufCheckpoint(path)


def test_a_vector_of_queries_must_be_of_plain_numbers(path: Path) -> None:
    config = tiny_config(architecture="qwen2", attention_bias=True)
    weights, name = random_weights(config), "blk.0.attn_q.bias"
    tensors = {
        tensor: (TensorType.Q8_0 if tensor == name else TensorType.F32, values)
        for tensor, values in weights.items()
    }
    write_gguf(path, model_metadata(config), tensors)
    with (
        GgufCheckpoint(path) as checkpoint,
        pytest.raises(UnsupportedTypeError, match=rf"the vector {name} is stored as Q8_0"),
    ):
        checkpoint.read(name)


def one_by_one(weights: Weights) -> Weights:
    """Return weights with a tensor for each expert, as GGUF files had them before 2024."""
    split: Weights = {}
    for name, values in weights.items():
        if values.ndim < 3:
            split[name] = values
        for number, matrix in enumerate(values if values.ndim == 3 else ()):
            split[name.replace("_exps", f".{number}")] = matrix
    return split


def test_missing_tensors_and_other_shapes(path: Path) -> None:
    weights = random_weights(CONFIG)
    del weights["blk.1.attn_q.weight"]
    write_model(path, CONFIG, weights)
    with pytest.raises(TensorError, match=r"blk\.1\.attn_q\.weight"):
        GgufCheckpoint(path)
    wider = {"llama.feed_forward_length": 128}
    with pytest.raises(TensorError, match=r"ffn"):
        GgufCheckpoint(write_model(path, CONFIG, random_weights(CONFIG), metadata=wider))


def test_a_vocabulary_is_no_model(path: Path) -> None:
    write_model(path, CONFIG, {})
    with pytest.raises(ModelNotFoundError, match="a vocabulary but no tensors"):
        GgufCheckpoint(path)


@pytest.mark.parametrize(("stored_as", "rows"), [(TensorType.Q4_K, 256), (TensorType.IQ1_S, 256)])
def test_every_quantisation_is_read(path: Path, stored_as: TensorType, rows: int) -> None:
    with_type(path, stored_as)
    with GgufCheckpoint(path) as checkpoint:
        tensor = checkpoint.read("blk.0.attn_q.weight")
        assert tensor.info.type is stored_as
        assert tensor.data.shape == (rows, row_bytes(stored_as, 256))


def test_reading_a_type_without_weights_names_it(path: Path) -> None:
    with_type(path, TensorType.I8)
    checkpoint = GgufCheckpoint(path)
    with pytest.raises(
        UnsupportedTypeError,
        match=r"blk\.0\.attn_q\.weight is stored as I8, .* F32, F16, Q4_0, .* MXFP4",
    ):
        checkpoint.read("blk.0.attn_q.weight")
    assert checkpoint.read("blk.0.attn_k.weight").info.type is TensorType.F16


def with_type(path: Path, stored_as: TensorType) -> None:
    """Write a model whose first queries say of themselves that they are of another type."""
    config = tiny_config(dim=256, n_heads=4, head_dim=64)
    stored = write_model(path, config, random_weights(config), TensorType.F16).read_bytes()
    shape = struct.pack("<I2QI", 2, 256, 256, int(TensorType.F16))
    path.write_bytes(stored.replace(shape, struct.pack("<I2QI", 2, 256, 256, int(stored_as))))


def test_reading_a_tensor_that_is_not_there(path: Path) -> None:
    checkpoint = GgufCheckpoint(write_model(path, CONFIG, random_weights(CONFIG)))
    with pytest.raises(TensorError, match=r"no tensor blk\.2\.attn_q\.weight"):
        checkpoint.read("blk.2.attn_q.weight")
