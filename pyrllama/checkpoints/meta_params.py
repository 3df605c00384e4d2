"""Meta's ``params.json``: the sizes and constants of a model.

Source of the fields and their defaults: ``ModelArgs`` of meta-llama/llama and of
``models/llama3/args.py`` in meta-llama/llama-models; ``args.py`` of mistralai/mistral-inference
for the three fields that Mistral's files of this form have besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.errors import CorruptFileError, TensorError, UnsupportedModelError
from pyrllama.model_config import Llama3Rope, ModelConfig
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyrllama.checkpoints.json_file import Fields
    from pyrllama.checkpoints.stored import StoredTensor

    Parts = Mapping[str, Sequence[StoredTensor]]

UNSUPPORTED = (
    "moe",
    "moe_args",
    "vision_chunk_size",
    "vision_model",
    "quantization_args",
    "lora_args",
)
"""Fields of Mixtral and Llama 4, of the models that see, and of quantised ones."""

LLAMA1_NORM_EPS = 1e-6
"""LLaMA 1's, but for its 65B."""
LLAMA1_65B_DIM = 8192
LLAMA3_THETA = 500_000.0
DEFAULT_THETA = 10_000.0
MISTRAL_CONTEXT = 32_768
TIED_ROPE_FACTOR = 32.0
"""Llama 3.2's stretching of the RoPE frequencies."""


def read_config(params: Fields, parts: Parts) -> ModelConfig:
    """Return the config that the parameters and the shapes of the shards' tensors give.

    ``parts`` has the parts of every tensor by GGUF name, in the order of the shards.
    """
    for key in UNSUPPORTED:
        if params.values.get(key) not in (None, -1, {}):
            raise UnsupportedModelError(
                params.path, f"{key} belongs to a kind of model that is not implemented"
            )
    dim, n_heads = params.size("dim"), params.size("n_heads")
    if not params.has("head_dim") and dim % n_heads:
        raise CorruptFileError(params.path, f"dim is {dim}, no multiple of n_heads, {n_heads}")
    vocab_size = _vocab_size(params, parts, dim)
    return ModelConfig(
        architecture="llama",
        vocab_size=vocab_size,
        dim=dim,
        n_layers=params.size("n_layers"),
        n_heads=n_heads,
        n_kv_heads=params.size("n_kv_heads", n_heads),
        head_dim=params.size("head_dim", dim // n_heads),
        ffn_dim=_ffn_dim(params, parts, dim),
        norm_eps=params.number("norm_eps", 1e-5),
        rope_theta=params.number("rope_theta", DEFAULT_THETA),
        context_length=context_length(params),
        rope_scaling=_rope_scaling(params, tied=OUTPUT not in parts),
        sliding_window=params.size("sliding_window") if params.has("sliding_window") else None,
    )


def _vocab_size(params: Fields, parts: Parts, dim: int) -> int:
    """Return the size that is stated, or for -1 the embedding's rows.

    Llama 3 cuts the embedding's rows between the shards, its predecessors cut the columns.
    """
    if params.values.get("vocab_size", -1) != -1:
        return params.size("vocab_size")
    rows, cols = _matrix(params, parts, TOKEN_EMBEDDING)
    return rows * len(parts[TOKEN_EMBEDDING]) if cols == dim else rows


def _ffn_dim(params: Fields, parts: Parts, dim: int) -> int:
    """Return the rows of all parts of ``w1``, which must be what the parameters give."""
    name = "blk.0.ffn_gate.weight"
    ffn_dim = _matrix(params, parts, name)[0] * len(parts[name])
    if params.has("hidden_dim") and params.size("hidden_dim") != ffn_dim:
        raise TensorError(
            params.path,
            f"{name} has {ffn_dim} rows, but hidden_dim is {params.size('hidden_dim')}; the "
            f"weights and the parameters do not belong together",
        )
    if params.has("multiple_of"):
        computed = computed_ffn_dim(params, dim)
        if ffn_dim != computed:
            raise TensorError(
                params.path,
                f"{name} has {ffn_dim} rows, but dim, multiple_of and ffn_dim_multiplier give "
                f"{computed}; the weights and the parameters do not belong together",
            )
    return ffn_dim


def computed_ffn_dim(params: Fields, dim: int) -> int:
    """Return the size of Meta's feed-forward layer: 8/3 of ``dim``, scaled and rounded up."""
    multiple_of = params.size("multiple_of")
    ffn_dim = int(2 * (4 * dim) / 3)
    if params.has("ffn_dim_multiplier"):
        ffn_dim = int(params.number("ffn_dim_multiplier") * ffn_dim)
    return -(-ffn_dim // multiple_of) * multiple_of


def context_length(params: Fields) -> int:
    """Return the length that is stated or, as Meta states none, that of the model's generation.

    RoPE tells Llama 3.1 and later (131,072), 3 (8,192) and Code Llama (16,384).  LLaMA 1
    (2,048) has an epsilon of 1e-6, and its 65B no ``n_kv_heads``; the rest is Llama 2 (4,096).
    """
    theta = params.number("rope_theta", DEFAULT_THETA)
    if params.has("max_seq_len"):
        return params.size("max_seq_len")
    if params.has("hidden_dim"):  # Mistral's alone
        return MISTRAL_CONTEXT
    if params.flag("use_scaled_rope"):
        return 131_072
    if theta == LLAMA3_THETA:
        return 8_192
    if theta > DEFAULT_THETA:
        return 16_384
    is_65b = params.size("dim") == LLAMA1_65B_DIM and not params.has("n_kv_heads")
    if is_65b or params.number("norm_eps", 1e-5) == LLAMA1_NORM_EPS:
        return 2_048
    return 4_096


def _rope_scaling(params: Fields, *, tied: bool) -> Llama3Rope | None:
    """Return the scaling that ``use_scaled_rope`` stands for.

    The parameters of Llama 3.1, 3.2 and 3.3 are alike, but 3.2 was trained with the factor 32
    and the others with 8.  Only 3.2's text models have a tied embedding.
    """
    if not params.flag("use_scaled_rope"):
        return None
    default = Llama3Rope()
    return Llama3Rope(
        factor=params.number("rope_scaling_factor", TIED_ROPE_FACTOR if tied else default.factor),
        high_freq_factor=params.number("rope_high_freq_factor", default.high_freq_factor),
    )


def _matrix(params: Fields, parts: Parts, name: str) -> tuple[int, int]:
    """Return the shape of a matrix's first part."""
    if name not in parts:
        raise TensorError(params.path.parent, f"the model needs {name}, which is not there")
    shape = parts[name][0].shape
    if len(shape) != 2:
        raise TensorError(params.path.parent, f"{name} has the shape {shape}, but is a matrix")
    return shape[0], shape[1]
