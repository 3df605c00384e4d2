"""Hugging Face's ``config.json``: defaults, both ages of RoPE fields, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.hf_writer import hf_config, write_hf_folder
from support.tiny_models import random_weights, tiny_config

from pyrllama.checkpoints.huggingface import HuggingFaceCheckpoint
from pyrllama.checkpoints.huggingface_config import read_config
from pyrllama.checkpoints.json_file import Fields
from pyrllama.errors import CorruptFileError, UnsupportedModelError
from pyrllama.model_config import (
    DynamicRope,
    Experts,
    LinearRope,
    Llama3Rope,
    ModelConfig,
    RopeScaling,
    YarnRope,
)

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN = {"rope_type": "yarn", "factor": 4.0}
USUAL_FACTOR = 0.1 * math.log(4.0) + 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def config_of(folder: Path, **overrides: Any) -> ModelConfig:
    write_hf_folder(folder, CONFIG, WEIGHTS, **overrides)
    with HuggingFaceCheckpoint(folder) as checkpoint:
        return checkpoint.config


def test_defaults_are_those_of_the_first_conversions(folder: Path) -> None:
    config = tiny_config(n_kv_heads=4, norm_eps=1e-6, context_length=2048)
    write_hf_folder(
        folder,
        config,
        random_weights(config),
        architectures=["LLaMAForCausalLM"],
        num_key_value_heads=None,
        head_dim=None,
        rms_norm_eps=None,
        rope_theta=None,
        max_position_embeddings=None,
        hidden_act=None,
        attention_bias=None,
    )
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.config == config


@pytest.mark.parametrize(
    ("overrides", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_scaling": {"rope_type": "default"}}, 1e4, None),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE}, 5e5, Llama3Rope(factor=32.0)),
        ({"rope_scaling": {**LLAMA3_ROPE, "type": "llama3"}}, 1e4, Llama3Rope(factor=32.0)),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6, None),
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3_ROPE}}, 5e5, Llama3Rope(factor=32.0)),
    ],
)
def test_rope_of_transformers_4_and_5(
    folder: Path, overrides: dict[str, Any], theta: float, scaling: RopeScaling | None
) -> None:
    config = config_of(folder, **overrides)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("rope", "scaling", "context"),
    [
        ({"type": "linear", "factor": 4.0}, LinearRope(4.0), 1024),
        ({"type": "dynamic", "factor": 2.0}, DynamicRope(2.0, 256), 512),
        (YARN, YarnRope(4.0, 256, USUAL_FACTOR), 1024),
        (
            YARN | {"original_max_position_embeddings": 64, "attention_factor": 1.5},
            YarnRope(4.0, 64, 1.5),
            256,
        ),
        (
            YARN | {"mscale": 0.5, "mscale_all_dim": 1.0},
            YarnRope(4.0, 256, (0.05 * math.log(4.0) + 1.0) / USUAL_FACTOR),
            1024,
        ),
        (
            YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
            YarnRope(4.0, 256, USUAL_FACTOR, 16.0, 2.0, truncate=False),
            1024,
        ),
    ],
)
def test_scaling_stretches_the_context(
    folder: Path, rope: dict[str, Any], scaling: RopeScaling, context: int
) -> None:
    config = config_of(folder, rope_scaling=rope)
    assert (config.rope_scaling, config.context_length) == (scaling, context)


MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 99}


def described(**overrides: Any) -> ModelConfig:
    """Return what a config.json says, whatever the weights are."""
    return read_config(Fields(Path("config.json"), hf_config(CONFIG) | overrides))


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"sliding_window": 99}, None),
        (MISTRAL, 4096),
        (MISTRAL | {"sliding_window": None}, None),
        (MISTRAL | {"sliding_window": 99}, 99),
        (QWEN3 | WINDOW | {"use_sliding_window": False}, None),
        (QWEN3 | WINDOW | {"max_window_layers": 0}, 99),
        (QWEN3 | WINDOW | {"max_window_layers": 2}, None),
        (QWEN3 | WINDOW | {"layer_types": ["sliding_attention"] * 2}, 99),
        (QWEN3_MOE | WINDOW | {"max_window_layers": 1}, 99),
    ],
)
def test_sliding_window(fields: dict[str, Any], window: int | None) -> None:
    assert described(**fields).sliding_window == window


@pytest.mark.parametrize("normalised", [True, False])
def test_experts(normalised: bool) -> None:
    config = described(**QWEN3_MOE, norm_topk_prob=normalised)
    assert config.experts == Experts(8, 2, normalised)
    assert (config.ffn_dim, config.qk_norm, config.architecture) == (24, True, "qwen3moe")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (QWEN3_MOE | {"mlp_only_layers": [0]}, "some layers have no experts"),
        (QWEN3_MOE | {"decoder_sparse_step": 2}, "some layers have no experts"),
        (QWEN3 | WINDOW | {"max_window_layers": 1}, "1 of 2 layers have a sliding window"),
        (QWEN3 | {"attention_bias": True}, "attention_bias is true"),
    ],
)
def test_layers_that_are_not_all_alike_are_named(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        described(**fields)


def test_other_classes_have_other_defaults_so_theirs_must_be_stated() -> None:
    fields = {**hf_config(CONFIG), **MISTRAL}
    del fields["num_key_value_heads"]
    with pytest.raises(CorruptFileError, match="has no num_key_value_heads"):
        read_config(Fields(Path("config.json"), fields))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            {"architectures": ["GemmaForCausalLM"]},
            "GemmaForCausalLM .* run is LlamaForCausalLM, M",
        ),
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM of the model_type llama"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": None, "model_type": "gpt2"}, "architecture is gpt2"),
        ({"model_type": "mistral"}, "what can be run is LlamaForCausalLM"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"quantization_config": {"bits": 4}}, "has a quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling is of the type longrope, .* yarn"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "rope_parameters is of the type mrope"),
        ({"rope_parameters": {"sliding_attention": {}}}, "rope_parameters differs between layers"),
    ],
)
def test_what_is_not_implemented_is_named(
    folder: Path, overrides: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=problem) as caught:
        config_of(folder, **overrides)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 10**400}, "hidden_size is 1000"),
        ({"hidden_size": 63, "head_dim": None}, "no multiple of num_attention_heads, 4"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"num_hidden_layers": 10**9}, "n_layers is 1000000000"),
        ({"num_key_value_heads": 3}, "no multiple of n_kv_heads, 3"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3', but it must be an object"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "has no factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "beta_slow is not under rope_scaling.beta_f"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta is 1.0, .* yarn needs one over 1"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type is 3, but it must be a text"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
    ],
)
def test_senseless_field_is_named(folder: Path, overrides: dict[str, Any], problem: str) -> None:
    with pytest.raises(CorruptFileError, match=problem):
        config_of(folder, **overrides)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\xfd", b"[" * 10**6])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_config_that_is_no_object_is_named(folder: Path, name: str, content: bytes) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS)
    (folder / name).write_bytes(content)
    with pytest.raises(CorruptFileError, match=rf"/{name}: holds"):
        HuggingFaceCheckpoint(folder)
