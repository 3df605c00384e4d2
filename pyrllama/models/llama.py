"""LLaMA as data: which tensors it has, which sizes it may have, and its RoPE frequencies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.errors import CorruptFileError, TensorError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.core import ModelConfig, TensorInfo

TOKEN_EMBEDDING = "token_embd.weight"  # noqa: S105 - a tensor, not a password
OUTPUT = "output.weight"
"""The vocabulary projection; where it is missing, the token embedding serves for both."""
ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the RoPE frequencies, as GGUF stores Llama 3.1's scaling."""
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
    block = {
        "attn_norm": (dim,),
        "attn_q": (config.q_dim, dim),
        "attn_k": (config.kv_dim, dim),
        "attn_v": (config.kv_dim, dim),
        "attn_output": (dim, config.q_dim),
        "ffn_norm": (dim,),
        "ffn_gate": (config.ffn_dim, dim),
        "ffn_up": (config.ffn_dim, dim),
        "ffn_down": (dim, config.ffn_dim),
    }
    for layer in range(config.n_layers):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def n_parameters(config: ModelConfig, *, tied: bool = False) -> int:
    """Return how many weights the model has; ``tied`` counts the embedding once."""
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
    constants = {"norm_eps": config.norm_eps, "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        constants["rope_scaling.factor"] = scaling.factor
        constants["rope_scaling.low_freq_factor"] = scaling.low_freq_factor
        constants["rope_scaling.high_freq_factor"] = scaling.high_freq_factor
        constants["rope_scaling.original_context"] = scaling.original_context
    for key, value in constants.items():
        if not 0.0 < value < math.inf:
            yield f"{key} is {value}, but it must be a finite number over 0"
    if scaling is not None and not scaling.low_freq_factor < scaling.high_freq_factor:
        yield "rope_scaling.low_freq_factor is not under rope_scaling.high_freq_factor"


def check_tensors(path: Path, config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Check that the model can be built from these tensors, and the config with them.

    Raises ``CorruptFileError`` for an impossible config, ``TensorError`` for tensors that are
    missing or of another shape, and ``UnsupportedModelError`` for ones that plain LLaMA does
    not have (a bias, say): leaving them out would compute another model.
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


def rope_frequencies(
    config: ModelConfig, factors: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Return by how many radians a position turns each pair: ``(head_dim / 2,)``.

    Pair ``i`` turns by ``theta^(-2i / head_dim)`` (RoFormer, arXiv 2104.09864), divided by
    GGUF's stored ``factors`` or, where there are none, stretched as ``config.rope_scaling``
    says.  Raises ``TensorError`` for factors that are not finite numbers over 0.
    """
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float64)
    frequencies = config.rope_theta ** (-pairs / config.head_dim)
    if factors is None:
        return _stretched(frequencies, config)
    divisors = np.asarray(factors, np.float64)
    if divisors.shape != pairs.shape or not np.all((divisors > 0) & np.isfinite(divisors)):
        raise TensorError(ROPE_FACTORS, f"does not hold {pairs.size} finite numbers over 0")
    return np.asarray(frequencies / divisors)


def _stretched(frequencies: NDArray[np.float64], config: ModelConfig) -> NDArray[np.float64]:
    """Apply Llama 3.1's scaling: slow pairs ``factor`` times slower, fast ones as they were.

    In between, the two are blended by how many turns a pair makes over the original context.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_context * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return np.asarray(frequencies * (kept + (1.0 - kept) / scaling.factor))


def rope_table(
    config: ModelConfig, n_positions: int, factors: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return cosine and sine of every position's angles: ``(positions, head_dim / 2, 2)``.

    Angles are computed in float64: at position 100,000 float32 would lose three digits.
    """
    positions = np.arange(n_positions, dtype=np.float64)
    angles = np.outer(positions, rope_frequencies(config, factors))
    return np.stack((np.cos(angles), np.sin(angles)), axis=-1).astype(np.float32)
