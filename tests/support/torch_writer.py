"""Writes PyTorch's zip files and Meta's folders without PyTorch, for tests.

The pickles have the opcodes that ``torch.save`` writes: protocol 2, every value memoised,
persistent references to storages, an ordered dictionary for the hooks of each tensor.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

STORAGE_KINDS = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.int64): "LongStorage",
}

META_NAMES = {
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "output": "output",
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}
CUT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
CUT_COLUMNS = ("wo", "w2")


@dataclass(frozen=True)
class PickledTensor:
    """What a pickle says of a tensor; offset, shape and strides count elements."""

    kind: str
    key: str
    numel: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Pickler:
    def __init__(self) -> None:
        self._out = bytearray(b"\x80\x02")
        self._memo: dict[str, int] = {}
        self._memoised = 0

    def raw(self, opcodes: bytes) -> None:
        self._out += opcodes

    def memoise(self) -> None:
        index, self._memoised = self._memoised, self._memoised + 1
        short = index < 256
        self._out += b"q" + bytes([index]) if short else b"r" + struct.pack("<I", index)

    def _once(self, key: str, opcodes: bytes) -> None:
        """Write a value in full the first time, recall it later."""
        if key not in self._memo:
            self._memo[key] = self._memoised
            self._out += opcodes
            self.memoise()
            return
        index = self._memo[key]
        self._out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)

    def text(self, value: str) -> None:
        encoded = value.encode()
        self._once("text " + value, b"X" + struct.pack("<I", len(encoded)) + encoded)

    def name(self, module: str, name: str) -> None:
        self._once(f"global {module}.{name}", f"c{module}\n{name}\n".encode())

    def number(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self._out += b"K" + bytes([value])
        elif 0 <= value < 1 << 16:
            self._out += b"M" + struct.pack("<H", value)
        elif -(1 << 31) <= value < 1 << 31:
            self._out += b"J" + struct.pack("<i", value)
        else:
            self._out += b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    def numbers(self, values: Sequence[int]) -> None:
        self.raw(b"(")
        for value in values:
            self.number(value)
        self.raw(b"t")
        self.memoise()

    def tensor(self, tensor: PickledTensor) -> None:
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.raw(b"((")
        self.text("storage")
        self.name("torch", tensor.kind)
        self.text(tensor.key)
        self.text("cpu")
        self.number(tensor.numel)
        self.raw(b"t")
        self.memoise()
        self.raw(b"Q")
        self.number(tensor.offset)
        self.numbers(tensor.shape)
        self.numbers(tensor.strides)
        self.raw(b"\x89")
        self.name("collections", "OrderedDict")
        self.raw(b")R")
        self.memoise()
        self.raw(b"t")
        self.memoise()
        self.raw(b"R")
        self.memoise()

    def finish(self) -> bytes:
        return bytes(self._out + b".")


def torch_pickle(tensors: Mapping[str, PickledTensor]) -> bytes:
    """Return the ``data.pkl`` of a state dictionary."""
    pickler = _Pickler()
    pickler.raw(b"}")
    pickler.memoise()
    pickler.raw(b"(")
    for name, tensor in tensors.items():
        pickler.text(name)
        pickler.tensor(tensor)
    pickler.raw(b"u")
    return pickler.finish()


def torch_records(arrays: Mapping[str, NDArray[Any]]) -> dict[str, bytes]:
    """Return the records of a file; arrays that are the same object share a storage."""
    tensors: dict[str, PickledTensor] = {}
    records: dict[str, bytes] = {}
    keys: dict[int, str] = {}
    for name, array in arrays.items():
        key = keys.setdefault(id(array), str(len(keys)))
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        kind = STORAGE_KINDS[array.dtype]
        tensors[name] = PickledTensor(kind, key, array.size, 0, array.shape, strides)
        records[f"data/{key}"] = np.ascontiguousarray(array).tobytes()
    return {"data.pkl": torch_pickle(tensors), "byteorder": b"little", **records, "version": b"3\n"}


def write_zip(path: Path, records: Mapping[str, bytes], folder: str = "archive") -> None:
    """Write records as PyTorch does: stored, each starting at a multiple of 64 bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            info = zipfile.ZipInfo(f"{folder}/{name}" if folder else name)
            start = archive.fp.tell() + 30 + len(info.filename) + 4  # type: ignore[union-attr]
            padding = -start % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, content)


def write_unzipped(folder: Path, records: Mapping[str, bytes]) -> None:
    """Write records as the files that a zip unpacks to."""
    for name, content in records.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_torch_file(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a state dictionary as ``torch.save`` does."""
    write_zip(path, torch_records(arrays))


def meta_arrays(
    weights: Mapping[str, NDArray[np.float32]],
    *,
    shard: int = 0,
    shards: int = 1,
    dtype: Any = np.float32,
    embedding_axis: int = 1,
) -> dict[str, NDArray[Any]]:
    """Return one shard's tensors under Meta's names, from GGUF names and whole matrices."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, whole in weights.items():
        theirs = meta_name(name)
        module = theirs.split(".")[-2]
        array = whole.astype(dtype)
        if module in CUT_ROWS:
            array = np.split(array, shards, axis=0)[shard]
        elif module in CUT_COLUMNS:
            array = np.split(array, shards, axis=1)[shard]
        elif module == "tok_embeddings":
            array = np.split(array, shards, axis=embedding_axis)[shard]
        arrays[theirs] = np.ascontiguousarray(array)
    return arrays


def meta_name(name: str) -> str:
    """Return Meta's name for GGUF's."""
    if not name.startswith("blk."):
        return f"{META_NAMES[name.removesuffix('.weight')]}.weight"
    _, layer, module, _ = name.split(".")
    return f"layers.{layer}.{META_NAMES[module]}.weight"


def meta_params(config: ModelConfig, **overrides: Any) -> dict[str, Any]:
    """Return a ``params.json`` as Llama 2's: without the vocabulary's size."""
    params = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": -1,
        "max_seq_len": config.context_length,
    }
    return {key: value for key, value in {**params, **overrides}.items() if value is not None}


def write_meta_folder(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    shards: int = 1,
    unzipped: bool = False,
    dtype: Any = np.float32,
    embedding_axis: int = 1,
    **params: Any,
) -> Path:
    """Write ``consolidated.NN.pth`` or its unzipped folders, and ``params.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        arrays = meta_arrays(
            weights, shard=shard, shards=shards, dtype=dtype, embedding_axis=embedding_axis
        )
        # LLaMA 1 and 2 store these, and nothing needs them.
        arrays["rope.freqs"] = np.arange(config.head_dim // 2).astype(dtype)
        records = torch_records(arrays)
        if unzipped:
            write_unzipped(folder / f"consolidated.{shard:02}", records)
        else:
            write_zip(folder / f"consolidated.{shard:02}.pth", records, f"consolidated.{shard:02}")
    (folder / "params.json").write_text(json.dumps(meta_params(config, **params)))
    return folder
