"""Meta's parameters: defaults, the generation of a model, and what is senseless."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_checks import check_checkpoint
from support.tiny_models import random_weights, tiny_config
from support.torch_writer import meta_arrays, write_meta_folder, write_torch_file

from pyrllama.checkpoints.json_file import Fields
from pyrllama.checkpoints.meta import MetaCheckpoint
from pyrllama.checkpoints.meta_params import computed_ffn_dim, context_length
from pyrllama.errors import CorruptFileError, TensorError, UnsupportedModelError
from pyrllama.model_config import Llama3Rope, ModelConfig, RopeScaling

CONFIG = tiny_config(n_heads=8, n_kv_heads=8, head_dim=8)
WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "7B"


def params_of(folder: Path, config: ModelConfig = CONFIG, **params: Any) -> ModelConfig:
    write_meta_folder(folder, config, random_weights(config), max_seq_len=None, **params)
    with MetaCheckpoint(folder) as checkpoint:
        return checkpoint.config


@pytest.mark.parametrize(
    ("params", "context_length"),
    [
        ({"norm_eps": 1e-6, "rope_theta": None, "n_kv_heads": None}, 2048),
        ({"norm_eps": 1e-5, "rope_theta": None, "n_kv_heads": None}, 4096),
        ({"rope_theta": 1e6}, 16384),
        ({"rope_theta": 5e5}, 8192),
        ({"rope_theta": 5e5, "use_scaled_rope": False}, 8192),
        ({"rope_theta": 5e5, "use_scaled_rope": True}, 131072),
    ],
)
def test_context_length_follows_the_generation(
    folder: Path, params: dict[str, Any], context_length: int
) -> None:
    assert params_of(folder, **params).context_length == context_length


def test_65b_of_llama_1_is_told_from_llama_2_70b() -> None:
    params = {"dim": 8192, "n_layers": 80, "n_heads": 64, "norm_eps": 1e-5, "vocab_size": -1}
    path = Path("params.json")
    assert context_length(Fields(path, params)) == 2048
    assert context_length(Fields(path, params | {"n_kv_heads": 8})) == 4096


def test_defaults_are_those_of_llama_1(folder: Path) -> None:
    config = params_of(folder, n_kv_heads=None, rope_theta=None)
    assert config.n_kv_heads == CONFIG.n_heads
    assert config.rope_theta == 10000.0
    assert config.rope_scaling is None


def test_stated_vocabulary_must_be_the_embeddings(folder: Path) -> None:
    assert params_of(folder, vocab_size=128).vocab_size == 128
    with pytest.raises(TensorError, match=r"token_embd\.weight of shape \(128, 64\)"):
        params_of(folder, vocab_size=127)


def test_mistrals_fields_are_heeded(folder: Path) -> None:
    config = dataclasses.replace(CONFIG, head_dim=24, sliding_window=99, context_length=32_768)
    fields = {"head_dim": 24, "sliding_window": 99, "hidden_dim": config.ffn_dim}
    assert params_of(folder, config, **fields) == config
    with pytest.raises(TensorError, match="has 96 rows, but hidden_dim is 97"):
        params_of(folder, config, **fields | {"hidden_dim": 97})
    with pytest.raises(UnsupportedModelError, match="moe belongs to a kind of model"):
        params_of(folder, config, moe={"num_experts": 8})


@pytest.mark.parametrize(
    ("params", "scaling"),
    [
        ({}, Llama3Rope(factor=8.0)),
        ({"rope_scaling_factor": 16.0}, Llama3Rope(factor=16.0)),
        ({"rope_high_freq_factor": 2.0}, Llama3Rope(factor=8.0, high_freq_factor=2.0)),
    ],
)
def test_scaled_rope_is_that_of_llama_3_1(
    folder: Path, params: dict[str, Any], scaling: RopeScaling
) -> None:
    assert params_of(folder, use_scaled_rope=True, **params).rope_scaling == scaling


def test_tied_model_with_scaled_rope_is_llama_3_2(folder: Path) -> None:
    weights = random_weights(CONFIG, tied=True)
    config = dataclasses.replace(CONFIG, rope_scaling=Llama3Rope(factor=32.0))
    write_meta_folder(folder, config, weights, use_scaled_rope=True)
    with MetaCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, config, weights)


def test_output_that_is_stored_with_the_embedding_is_tied(folder: Path) -> None:
    weights = random_weights(CONFIG, tied=True)
    write_meta_folder(folder, CONFIG, weights)
    arrays = meta_arrays(weights)
    arrays["output.weight"] = arrays["tok_embeddings.weight"]
    write_torch_file(folder / "consolidated.00.pth", arrays)
    with MetaCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, CONFIG, weights)


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "ffn_dim"),
    [
        (4096, 256, None, 11008),  # LLaMA and Llama 2 7B
        (5120, 256, None, 13824),  # 13B
        (6656, 256, None, 17920),  # 30B
        (8192, 256, None, 22016),  # 65B
        (8192, 4096, 1.3, 28672),  # Llama 2 and 3 70B
        (4096, 1024, 1.3, 14336),  # Llama 3 8B
        (2048, 256, 1.5, 8192),  # Llama 3.2 1B
        (3072, 256, 1.0, 8192),  # Llama 3.2 3B
        (16384, 4096, 1.2, 53248),  # Llama 3.1 405B
    ],
)
def test_ffn_formula_gives_the_published_sizes(
    dim: int, multiple_of: int, multiplier: float | None, ffn_dim: int
) -> None:
    params = {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    assert computed_ffn_dim(Fields(Path("params.json"), params), dim) == ffn_dim


def test_ffn_size_is_checked_with_the_formula(folder: Path) -> None:
    config = dataclasses.replace(CONFIG, ffn_dim=176)  # 2/3 of 4 * 64, up to a multiple of 16
    assert params_of(folder, config, multiple_of=16).ffn_dim == 176
    with pytest.raises(TensorError, match=r"has 176 rows, but .* give 192"):
        params_of(folder, config, multiple_of=32)


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"dim": None}, "has no dim"),
        ({"dim": 0}, "dim is 0, but it must be a whole number from 1"),
        ({"dim": 10**400, "multiple_of": 4}, "dim is 1000"),
        ({"dim": "64"}, "dim is '64'"),
        ({"dim": True}, "dim is True"),
        ({"dim": 65}, "no multiple of n_heads"),
        ({"n_heads": -8}, "n_heads is -8"),
        ({"n_layers": 10**9}, "n_layers is 1000000000"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"norm_eps": 0}, "norm_eps is 0, but it must be a finite number over 0"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"use_scaled_rope": 1}, "use_scaled_rope is 1, but it must be true or false"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        ({"max_seq_len": 1.5}, "max_seq_len is 1.5"),
    ],
)
def test_senseless_parameter_is_named(folder: Path, params: dict[str, Any], problem: str) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, **params)
    with pytest.raises(CorruptFileError, match=problem):
        MetaCheckpoint(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\xfd", b"[" * 10**6])
def test_parameters_that_are_no_object_are_named(folder: Path, content: bytes) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS)
    (folder / "params.json").write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"params\.json: holds"):
        MetaCheckpoint(folder)


@pytest.mark.parametrize(
    "params",
    [
        {"moe_args": {"num_experts": 16}},
        {"vision_chunk_size": 448},
        {"quantization_args": {"group_size": 32}},
        {"lora_args": {"rank": 16}},
    ],
)
def test_other_kinds_of_model_are_named(folder: Path, params: dict[str, Any]) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, **params)
    with pytest.raises(UnsupportedModelError, match=f"{next(iter(params))} belongs to a kind"):
        MetaCheckpoint(folder)
