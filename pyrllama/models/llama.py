"""LLaMA and its relatives as data: which tensors a model has, and which sizes it may have.

``families.py`` has what differs between them, ``rope.py`` the RoPE frequencies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pyrllama.errors import CorruptFileError, TensorError, UnsupportedModelError
from pyrllama.models.rope import ROPE_FACTORS, scaling_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pyrllama.model_config import Experts, ModelConfig
    from pyrllama.tensors import TensorInfo

TOKEN_EMBEDDING = "token_embd.weight"  # noqa: S105 - a tensor, not a password
OUTPUT = "output.weight"
"""The vocabulary projection; where it is missing, the token embedding serves for both."""
ROUTER = "ffn_gate_inp"
"""A layer's router to its experts.  It is small and decides much: no type is forced on it."""
OPTIONAL = frozenset({OUTPUT, ROPE_FACTORS})
"""Tensors that a checkpoint may lack."""
UNUSED_SUFFIX = ".attn_rot_embd.weight"
"""Precomputed rotations of old converters: a checkpoint may hold them, nothing reads them."""

MAX_SIZES = {
    "vocab_size": 1 << 24,
    "dim": 1 << 18,
    "n_layers": 1 << 12,
    "n_heads": 1 << 12,
    "n_kv_heads": 1 << 12,
    "head_dim": 1 << 14,
    "ffn_dim": 1 << 22,
    "context_length": 1 << 30,
}
MAX_EXPERTS = 1 << 12
"""Far over every published model: beyond them a file is damaged, not large."""
MAX_NAMED = 3
"""Tensors that one error message names."""


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by GGUF name, ``OPTIONAL`` ones included.

    Shapes are in NumPy's order: a matrix is ``(outputs, inputs)``.
    """
    dim, vocab_size = config.dim, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        TOKEN_EMBEDDING: (vocab_size, dim),
        "output_norm.weight": (dim,),
        OUTPUT: (vocab_size, dim),
        ROPE_FACTORS: (config.head_dim // 2,),
    }
    block = _attention_tensors(config) | _ffn_tensors(config)
    for layer in range(config.n_layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _attention_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    dim, q_dim, kv_dim = config.dim, config.q_dim, config.kv_dim
    shapes: dict[str, tuple[int, ...]] = {"attn_norm.weight": (dim,)}
    for name, rows in {"attn_q": q_dim, "attn_k": kv_dim, "attn_v": kv_dim}.items():
        shapes[f"{name}.weight"] = (rows, dim)
        if config.attention_bias:
            shapes[f"{name}.bias"] = (rows,)
    if config.qk_norm:
        shapes |= dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (config.head_dim,))
    return {**shapes, "attn_output.weight": (dim, q_dim)}


def _ffn_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    inner, outer = (config.ffn_dim, config.dim), (config.dim, config.ffn_dim)
    norm: dict[str, tuple[int, ...]] = {"ffn_norm.weight": (config.dim,)}
    if config.experts is None:
        return {**norm, "ffn_gate.weight": inner, "ffn_up.weight": inner, "ffn_down.weight": outer}
    n = config.experts.count
    return {
        **norm,
        f"{ROUTER}.weight": (n, config.dim),
        "ffn_gate_exps.weight": (n, *inner),
        "ffn_up_exps.weight": (n, *inner),
        "ffn_down_exps.weight": (n, *outer),
    }


def is_router(name: str) -> bool:
    """Whether a tensor is a router to experts."""
    return name.endswith(f".{ROUTER}.weight")


def n_parameters(config: ModelConfig, *, tied: bool = False) -> int:
    """Return how many weights a model has, with all experts; ``tied`` counts the embedding once."""
    skipped = OPTIONAL if tied else OPTIONAL - {OUTPUT}
    shapes = expected_tensors(config)
    return sum(math.prod(shape) for name, shape in shapes.items() if name not in skipped)


def check_config(path: Path, config: ModelConfig) -> None:
    """Raise ``CorruptFileError``, naming the key, for sizes or constants that cannot be."""
    problem = next(_config_problems(config), None)
    if problem is not None:
        raise CorruptFileError(path, f"{problem}; fetch the checkpoint's configuration again")


def _config_problems(config: ModelConfig) -> Iterator[str]:
    for key, most in MAX_SIZES.items():
        size = getattr(config, key)
        if not 1 <= size <= most:
            yield f"{key} is {size}, but it must be from 1 to {most}"
    if config.head_dim % 2:
        yield f"head_dim is {config.head_dim}, but RoPE turns pairs: it must be even"
    if config.n_heads % config.n_kv_heads:
        yield f"n_heads is {config.n_heads}, no multiple of n_kv_heads, {config.n_kv_heads}"
    for key, value in {"norm_eps": config.norm_eps, "rope_theta": config.rope_theta}.items():
        if not 0.0 < value < math.inf:
            yield f"{key} is {value}, but it must be a finite number over 0"
    if config.rope_scaling is not None:
        yield from scaling_problems(config.rope_scaling, config.rope_theta)
    if config.sliding_window is not None and config.sliding_window < 1:
        yield f"sliding_window is {config.sliding_window}, but it must be at least 1"
    if config.experts is not None:
        yield from _expert_problems(config.experts)


def _expert_problems(experts: Experts) -> Iterator[str]:
    if not 1 <= experts.count <= MAX_EXPERTS:
        yield f"experts.count is {experts.count}, but it must be from 1 to {MAX_EXPERTS}"
    if not 1 <= experts.used <= experts.count:
        yield f"experts.used is {experts.used}, but it must be from 1 to {experts.count}"


def check_tensors(path: Path, config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Check that the model can be built from these tensors, and the config with them.

    Raises ``CorruptFileError`` for an impossible config, ``TensorError`` for tensors that are
    missing or of another shape, and ``UnsupportedModelError`` for ones that the
    architecture does not have (a bias, say): leaving them out would compute another model.
    """
    check_config(path, config)
    expected = expected_tensors(config)
    missing = [name for name in expected if name not in tensors and name not in OPTIONAL]
    if missing:
        raise TensorError(
            path, f"the model needs {_some(missing)}, but the checkpoint has no such tensor"
        )
    wrong = [
        f"{name} of shape {tensors[name].shape} where the model says {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if wrong:
        raise TensorError(
            path, f"has {_some(wrong)}; the weights and the configuration do not belong together"
        )
    unknown = [
        name for name in tensors if name not in expected and not name.endswith(UNUSED_SUFFIX)
    ]
    if unknown:
        raise UnsupportedModelError(
            path, f"has {_some(unknown)}, which the {config.architecture} model does not use"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
