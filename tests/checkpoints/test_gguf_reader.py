from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from support.gguf_writer import (
    Typed,
    write_model,
)
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

from pyrllama.checkpoints.gguf import GgufCheckpoint, GgufFile
from pyrllama.errors import (
    CorruptFileError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from pyrllama.model_config import Experts, LinearRope, RopeScaling, YarnRope
from pyrllama.quants import dequantize
from pyrllama.sampling_settings import resolve
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CONFIG = tiny_config()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("type_", [TensorType.F32, TensorType.F16, TensorType.BF16,
                                   TensorType.Q8_0, TensorType.Q4_0])  # fmt: skip
@pytest.mark.parametrize("version", [2, 3])
def test_a_model(path: Path, type_: TensorType, version: int) -> None:
    weights = random_weights(CONFIG)
    write_model(path, CONFIG, weights, type_, version=version)
    with GgufCheckpoint(path) as checkpoint:
        assert checkpoint.config == tiny_config(norm_eps=float(np.float32(1e-5)))
        assert checkpoint.format == f"GGUF {version}"
        assert list(checkpoint.tensors) == list(weights)
        for name, values in weights.items():
            tensor = checkpoint.read(name)
            expected = type_ if values.ndim > 1 else TensorType.F32
            assert tensor.info == TensorInfo(name, values.shape, expected)
            got = dequantize(tensor.info.type, tensor.data, values.shape[-1])
            np.testing.assert_allclose(got.reshape(values.shape), values, atol=0.1)
            checkpoint.release(name)


def test_keys_that_may_be_missing(path: Path) -> None:
    keys = ["vocab_size", "attention.head_count_kv", "attention.key_length",
            "attention.value_length", "rope.dimension_count", "rope.freq_base"]  # fmt: skip
    config = tiny_config(n_kv_heads=4, norm_eps=0.5)
    left_out = dict.fromkeys((f"llama.{key}" for key in keys), None)
    write_model(path, config, random_weights(config), metadata=left_out)
    assert GgufCheckpoint(path).config == config


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
        {"llama.rope.scale_linear": 1.0},
        {"llama.expert_count": 0},
        {"llama.attention.head_count_kv": [2, 2]},
        {"llama.attention.head_count": Typed(2, 4)},
    ],
)
def test_features_that_change_nothing(path: Path, metadata: dict[str, Any]) -> None:
    write_model(path, CONFIG, random_weights(CONFIG), metadata=metadata)
    assert GgufCheckpoint(path).config.n_kv_heads == 2


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"general.architecture": "phi3"}, "'phi3' .* that are: llama, qwen2, qwen3, qwen3moe"),
        ({"llama.expert_shared_count": 1}, "llama.expert_shared_count is 1; such mixtures"),
        ({"llama.expert_weights_scale": 2.5}, "llama.expert_weights_scale is 2.5"),
        ({"llama.expert_gating_func": 2}, "llama.expert_gating_func is 2; routers"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8; turning a part of the 16"),
        ({"llama.attention.value_length": 8}, "attention.value_length is 8"),
        ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope'; .* yarn"),
        ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv is array.* differ between"),
    ],
)  # fmt: skip
def test_features_that_are_missing(path: Path, metadata: dict[str, Any], problem: str) -> None:
    write_model(path, CONFIG, random_weights(CONFIG), metadata=metadata)
    with pytest.raises(UnsupportedModelError, match=problem):
        GgufCheckpoint(path)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"general.architecture": None}, "does not name the architecture"),
        ({"llama.block_count": None}, "lacks the key llama.block_count"),
        ({"llama.embedding_length": "64"}, "embedding_length is '64', not a whole number"),
        ({"llama.embedding_length": True}, "embedding_length is True, not a whole number"),
        ({"llama.attention.head_count": 0}, "0 attention heads"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "epsilon is 'x', not a number"),
        ({"llama.attention.layer_norm_rms_epsilon": math.nan}, "norm_eps is nan"),
        ({"llama.rope.scaling.type": 1}, "rope.scaling.type is 1, not a string"),
        ({"llama.block_count": 2**32 - 1}, "n_layers is 4294967295"),
        ({"llama.attention.head_count_kv": 3}, "no multiple of n_kv_heads"),
        ({"llama.context_length": 0}, "context_length is 0"),
        ({"llama.expert_count": 8}, "lacks the key llama.expert_used_count"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 9}, "experts.used is 9, .* 1 to 8"),
        (
            {"llama.expert_count": 2, "llama.expert_used_count": 1, "llama.expert_weights_norm": 1},
            "expert_weights_norm is 1, not true or false",
        ),
        ({"llama.rope.scaling.factor": -2.0}, "rope_scaling.factor is -2.0"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": math.nan},
            "rope_scaling.factor is nan",
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.scaling.yarn_log_multiplier": -14.5,
            },
            "yarn_log_multiplier is -14.5, not",
        ),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": math.inf},
            "rope_scaling.factor is inf",
        ),
    ],
)
def test_senseless_keys(path: Path, metadata: dict[str, Any], problem: str) -> None:
    write_model(path, CONFIG, random_weights(CONFIG), metadata=metadata)
    with pytest.raises(CorruptFileError, match=problem):
        GgufCheckpoint(path)


def test_keys_that_say_how_to_sample(path: Path) -> None:
    with GgufCheckpoint(write_model(path, CONFIG, random_weights(CONFIG))) as checkpoint:
        assert checkpoint.sampling_settings() == {}
    keys = {
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 7,
        "general.sampling.sequence": "top_k;temp",
        "general.sampling.penalty_repeat": 1.25,
        "general.sampling.unheard_of": 3,
    }
    path = write_model(path, CONFIG, random_weights(CONFIG), metadata=keys)
    with GgufCheckpoint(path) as checkpoint:
        settings = checkpoint.sampling_settings()
    assert settings == {
        "samplers": "top_k;temp", "top_k": 7, "temperature": 0.5, "repeat_penalty": 1.25,
    }  # fmt: skip
    chosen = resolve(model=settings).sampling
    assert chosen.samplers == ("top_k", "temperature")


YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
BETAS = {"fast": 16.0, "slow": 2.0}
USUAL_FACTOR = 0.1 * math.log(4.0) + 1.0


@pytest.mark.parametrize(
    ("metadata", "scaling", "context"),
    [
        ({"llama.rope.scale_linear": 2.0}, LinearRope(2.0), 256),
        ({"llama.rope.scaling.factor": 4.0}, LinearRope(4.0), 256),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
         LinearRope(4.0), 256),
        (YARN, YarnRope(4.0, 256, USUAL_FACTOR), 1024),
        (YARN | {"llama.rope.scaling.original_context_length": 64},
         YarnRope(4.0, 64, USUAL_FACTOR), 256),
        (YARN | {"llama.rope.scaling.attn_factor": 2.0},
         YarnRope(4.0, 256, 2 * USUAL_FACTOR), 1024),
        (YARN | {"llama.rope.scaling.yarn_log_multiplier": 1.0}, YarnRope(4.0, 256, 1.0), 1024),
        (YARN | {f"llama.rope.scaling.yarn_beta_{end}": turns for end, turns in BETAS.items()},
         YarnRope(4.0, 256, USUAL_FACTOR, 16.0, 2.0), 1024),
    ],
)  # fmt: skip
def test_rope_scaling(
    path: Path, metadata: dict[str, Any], scaling: RopeScaling, context: int
) -> None:
    write_model(path, CONFIG, random_weights(CONFIG), metadata=metadata)
    with GgufCheckpoint(path) as checkpoint:
        assert checkpoint.config.rope_scaling == scaling
        assert checkpoint.config.context_length == context


EPS = 2.0**-17
"""The same as a float32, which GGUF's numbers are."""
ARCHITECTURES = {
    "mistral": tiny_config(norm_eps=EPS, sliding_window=16),
    "mixtral": tiny_config(norm_eps=EPS, experts=Experts(5, 2)),
    "qwen2": tiny_config(norm_eps=EPS, architecture="qwen2", attention_bias=True),
    "qwen3": tiny_config(norm_eps=EPS, architecture="qwen3", qk_norm=True, head_dim=24),
    "qwen3moe": tiny_config(
        norm_eps=EPS, architecture="qwen3moe", qk_norm=True, experts=Experts(3, 2, False)
    ),
}


@pytest.mark.parametrize("type_", [TensorType.F32, TensorType.F16, TensorType.Q8_0])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(path: Path, name: str, type_: TensorType) -> None:
    config = ARCHITECTURES[name]
    weights = random_weights(config)
    write_model(path, config, weights, type_)
    expected = MemoryCheckpoint(config, weights, type_)
    with GgufCheckpoint(path) as checkpoint:
        assert checkpoint.config == config
        assert checkpoint.tensors == expected.tensors
        for tensor in weights:
            stored = checkpoint.read(tensor)
            np.testing.assert_array_equal(stored.data, expected.read(tensor).data, tensor)
            checkpoint.release(tensor)


# Real files


def test_a_real_model_agrees_with_the_gguf_package(data: Path) -> None:
    path = data / "models" / "llama-2-tiny-random.gguf"
    reader = gguf.GGUFReader(path)
    checkpoint = GgufCheckpoint(path)
    assert (checkpoint.config.dim, checkpoint.config.n_layers) == (8, 1)
    assert checkpoint.config.vocab_size == 32000
    assert len(checkpoint.tensors) == len(reader.tensors)
    for theirs in reader.tensors:
        ours = checkpoint.read(theirs.name)
        assert ours.info.shape == tuple(int(size) for size in theirs.shape[::-1])
        assert int(ours.info.type) == int(theirs.tensor_type)
        np.testing.assert_array_equal(ours.data.ravel(), stored_bytes(theirs))


def stored_bytes(tensor: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)


@pytest.mark.parametrize(
    ("name", "n_tokens", "n_merges", "some"),
    [
        ("llama-spm", 32000, 0, {0: "<unk>", 1: "<s>", 31999: "给"}),
        ("llama-bpe", 128256, 280147, {0: "!", 128000: "<|begin_of_text|>"}),
        ("qwen2", 151936, 151387, {151643: "<|endoftext|>"}),
    ],
)
def test_real_vocabularies(
    data: Path, name: str, n_tokens: int, n_merges: int, some: dict[int, str]
) -> None:
    path = data / "vocab" / f"ggml-vocab-{name}.gguf"
    file = GgufFile(path)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == n_tokens
    assert {index: tokens[index] for index in some} == some
    assert len(file.metadata.get("tokenizer.ggml.merges", ())) == n_merges
    assert len(list(tokens.raws())) == n_tokens
    assert dict(file.tensors) == {}
    with pytest.raises((ModelNotFoundError, UnsupportedModelError)):
        GgufCheckpoint(path)
