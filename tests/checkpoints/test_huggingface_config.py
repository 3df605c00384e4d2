"""Hugging Face's ``config.json``: defaults, both ages of RoPE fields, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.hf_writer import write_hf_folder
from support.tiny_models import random_weights, tiny_config

from pyrllama.checkpoints.huggingface import HuggingFaceCheckpoint
from pyrllama.core import ModelConfig, RopeScaling
from pyrllama.errors import CorruptFileError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


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
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE}, 5e5, RopeScaling(factor=32.0)),
        ({"rope_scaling": {**LLAMA3_ROPE, "type": "llama3"}}, 1e4, RopeScaling(factor=32.0)),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6, None),
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3_ROPE}}, 5e5, RopeScaling(factor=32.0)),
    ],
)
def test_rope_of_transformers_4_and_5(
    folder: Path, overrides: dict[str, Any], theta: float, scaling: RopeScaling | None
) -> None:
    config = config_of(folder, **overrides)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"architectures": ["MistralForCausalLM"]}, r"MistralForCausalLM, .* LlamaForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": None, "model_type": "gpt2"}, "architecture is gpt2"),
        ({"model_type": "mistral"}, "what can be run is LlamaForCausalLM"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"quantization_config": {"bits": 4}}, "has a quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is of the type linear"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is of the type yarn"),
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
