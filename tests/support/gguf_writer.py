"""Writes GGUF files for tests, whole ones and, piece by piece, impossible ones."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.hf_writer import half_split

from pyrllama.quants import quantize
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

STRING, ARRAY = 8, 9
SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"} | {
    10: "Q",
    11: "q",
    12: "d",
}
"""Codes of metadata types and the letters that ``struct`` has for them."""


@dataclass(frozen=True)
class Typed:
    """A metadata value of a given type; plain Python values get the usual one."""

    code: int
    value: Any
    item_code: int = STRING
    """The type of the items, where the value is an array."""


def header(n_tensors: int, n_keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_keys)


def string(text: str | bytes) -> bytes:
    stored = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(stored)) + stored


def key_value(key: str | bytes, value: Any) -> bytes:
    typed = value if isinstance(value, Typed) else _typed(value)
    return string(key) + struct.pack("<I", typed.code) + _value(typed)


def entry(name: str | bytes, dims: tuple[int, ...], code: int, offset: int) -> bytes:
    """Return a line of the tensor directory; ``dims`` has the innermost first."""
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + sizes + struct.pack("<IQ", code, offset)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[TensorType, NDArray[np.float32]]],
    *,
    version: int = 3,
) -> Path:
    """Write a whole file; every tensor is stored in the type that stands beside it."""
    alignment = int(metadata.get("general.alignment", 32))
    directory, data = b"", b""
    for name, (type_, values) in tensors.items():
        directory += entry(name, values.shape[::-1], int(type_), len(data))
        data += quantize(type_, values.reshape(-1, values.shape[-1])).tobytes()
        data += bytes(-len(data) % alignment)
    head = header(len(tensors), len(metadata), version)
    head += b"".join(key_value(key, value) for key, value in metadata.items()) + directory
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


def write_model(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    type_: TensorType = TensorType.F32,
    *,
    metadata: Mapping[str, Any] | None = None,
    version: int = 3,
) -> Path:
    """Write a model's matrices in ``type_``, its vectors in F32, and what describes it.

    ``metadata`` adds keys, the tokenizer's for example, or puts others in their place; None
    as a value leaves a key out.
    """
    described = model_metadata(config) | dict(metadata or {})
    tensors = {
        name: (
            type_ if values.ndim > 1 else TensorType.F32,
            _in_the_files_order(name, values, config),
        )
        for name, values in weights.items()
    }
    kept = {key: value for key, value in described.items() if value is not None}
    return write_gguf(path, kept, tensors, version=version)


def model_metadata(config: ModelConfig) -> dict[str, Any]:
    sizes = {
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    if config.sliding_window:
        sizes["attention.sliding_window"] = config.sliding_window
    if config.experts:
        sizes["expert_count"] = config.experts.count
        sizes["expert_used_count"] = config.experts.used
        sizes["expert_weights_norm"] = config.experts.normalised
        sizes["expert_feed_forward_length"] = config.ffn_dim
    keys = {f"{config.architecture}.{key}": value for key, value in sizes.items()}
    return {"general.architecture": config.architecture} | keys


def _in_the_files_order(
    name: str, values: NDArray[np.float32], config: ModelConfig
) -> NDArray[np.float32]:
    """Return the rows of a head as GGUF files of the architecture have them."""
    if config.architecture == "llama" or not re.search(r"attn_[qk](_norm)?\.", name):
        return values
    return half_split(values, len(values) // config.head_dim)


def _typed(value: Any) -> Typed:
    if isinstance(value, list):
        return Typed(ARRAY, value, _typed(value[0]).code)
    codes = {bool: 7, int: 4, float: 6, str: STRING, bytes: STRING}
    return Typed(codes[type(value)], value)


def _value(typed: Typed) -> bytes:
    if typed.code == STRING:
        return string(typed.value)
    if typed.code == ARRAY:
        items = [
            item if isinstance(item, Typed) else Typed(typed.item_code, item)
            for item in typed.value
        ]
        count = struct.pack("<IQ", typed.item_code, len(items))
        return count + b"".join(_value(item) for item in items)
    return struct.pack("<" + SCALAR_FORMATS[typed.code], typed.value)
