"""Writes Hugging Face folders, the weights given under GGUF's names, for tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import save_file
from support.torch_writer import write_torch_file

from pyrllama.model_config import Llama3Rope

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

Form = Literal["safetensors", "sharded safetensors", "bin", "sharded bin"]
FORMS: tuple[Form, ...] = ("safetensors", "sharded safetensors", "bin", "sharded bin")

HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.up_proj",
}


def hf_name(name: str) -> str:
    """Return Hugging Face's name for GGUF's."""
    if not name.startswith("blk."):
        return f"{HF_NAMES[name.removesuffix('.weight')]}.weight"
    _, layer, module, _ = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[module]}.weight"


def half_split(rows: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Return interleaved rows in half-split order: the even rows of a head, then the odd ones."""
    heads = [np.concatenate([head[0::2], head[1::2]]) for head in np.split(rows, n_heads, axis=0)]
    return np.concatenate(heads)


def hf_config(config: ModelConfig, *, tied: bool = False, **overrides: Any) -> dict[str, Any]:
    """Return a ``config.json`` as transformers 4 writes it; None leaves a field out."""
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
    }
    if config.rope_scaling is not None:
        assert isinstance(config.rope_scaling, Llama3Rope)
        settings["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_context,
        }
    return {key: value for key, value in {**settings, **overrides}.items() if value is not None}


def hf_arrays(
    config: ModelConfig, weights: Mapping[str, NDArray[np.float32]], dtype: Any = np.float32
) -> dict[str, NDArray[Any]]:
    """Return the tensors under Hugging Face's names and in its order of rows."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, values in weights.items():
        array = values.astype(dtype)
        if name.endswith(".attn_q.weight"):
            array = half_split(array, config.n_heads)
        elif name.endswith(".attn_k.weight"):
            array = half_split(array, config.n_kv_heads)
        arrays[hf_name(name)] = np.ascontiguousarray(array)
    return arrays


def write_hf_folder(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    form: Form = "safetensors",
    dtype: Any = np.float32,
    **overrides: Any,
) -> Path:
    """Write ``config.json`` and the weights; a model without ``output.weight`` is tied."""
    folder.mkdir(parents=True, exist_ok=True)
    tied = "output.weight" not in weights
    settings = hf_config(config, tied=tied, **overrides)
    (folder / "config.json").write_text(json.dumps(settings))
    write_hf_weights(folder, hf_arrays(config, weights, dtype), form)
    return folder


def write_hf_weights(folder: Path, arrays: Mapping[str, NDArray[Any]], form: Form) -> None:
    """Write tensors in one file, or in three with an index."""
    stem, ending = ("model", "safetensors") if "safetensors" in form else ("pytorch_model", "bin")
    if not form.startswith("sharded"):
        _write_file(folder / f"{stem}.{ending}", arrays)
        return
    names = list(arrays)
    weight_map: dict[str, str] = {}
    for shard in range(3):
        file = f"{stem}-{shard + 1:05}-of-00003.{ending}"
        mine = names[shard::3]
        _write_file(folder / file, {name: arrays[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def _write_file(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    if path.suffix == ".bin":
        write_torch_file(path, arrays)
    else:
        save_file(dict(arrays), path, metadata={"format": "pt"})
