"""llama2.c's ``.bin`` checkpoints: the legacy format and versions 1 and 2.

::

    legacy      7 x int32, then float32 tensors and two tables of RoPE; a vocabulary size under
                0 says that the output projection is stored too
    version 1   "24ka", version int32, 7 x int32, tied uint8, zeros up to byte 256, then float32
                tensors, norms first
    version 2   as version 1 with the group size, int32, behind the tied flag; every matrix is
                int8 numbers followed by a float32 scale for each group of them

The seven numbers are dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, context_length.
Everything is little-endian, and a tensor of all layers lies in one piece.  Queries and keys
are in interleaved RoPE order.

A version 2 matrix is read as F32, which holds ``int8 * scale`` to the last bit; Q8_0 would
round the scales to half precision.

Source: ``export.py`` of karpathy/llama2.c.
"""

from __future__ import annotations

import math
import struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyrllama.checkpoints.base import Checkpoint
from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.errors import CorruptFileError, RllamaError, TensorError, UnknownFormatError
from pyrllama.model_config import ModelConfig
from pyrllama.models.llama import check_config, expected_tensors
from pyrllama.tensors import Tensor, TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MAGIC = b"24ka"
"""``ak42`` as a little-endian number, 0x616b3432."""
LEGACY, FLOATS, GROUPS = 0, 1, 2
"""Versions; the legacy format does not number itself."""
NORM_EPS = 1e-5
ROPE_THETA = 10_000.0

_SIZES = struct.Struct("<7i")
_VERSION = struct.Struct("<4si")
_FLAGS = struct.Struct("<Bi")
_HEADER_BYTES = 256
_FLOAT_BYTES = 4
_ROPE_TABLES = "(rope tables)"
_MATRICES = tuple(
    f"blk.*.{name}.weight"
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")
)
_ORDER = (
    "blk.*.attn_norm.weight",
    "blk.*.ffn_norm.weight",
    "output_norm.weight",
    "token_embd.weight",
    *_MATRICES,
    "output.weight",
)
_LEGACY_ORDER = (
    "token_embd.weight",
    "blk.*.attn_norm.weight",
    *_MATRICES[:4],
    "blk.*.ffn_norm.weight",
    *_MATRICES[4:],
    "output_norm.weight",
    _ROPE_TABLES,
    "output.weight",
)


class _Header(NamedTuple):
    """What stands before the tensors, and how long it is."""

    version: int
    config: ModelConfig
    tied: bool
    group_size: int
    length: int


class _Extent(NamedTuple):
    """Where a tensor lies; a group size of 0 says that it is float32."""

    offset: int
    length: int
    group_size: int


def looks_like(path: Path) -> bool:
    """Tell whether a file is a llama2.c checkpoint.

    The legacy format has no magic number: its seven numbers must make a model that takes as
    many bytes as the file has.
    """
    try:
        file = MappedFile(path)
    except RllamaError:
        return False
    try:
        if _has_magic(file):
            return True
        _find_tensors(file, _read_header(file))
    except RllamaError:
        return False
    else:
        return True
    finally:
        file.close()


class Llama2cCheckpoint(Checkpoint):
    """A model in llama2.c's format; all tensors are F32 once they are read.

    Raises ``CorruptFileError`` when the header is senseless or the file's size is not the one
    that follows from it, and ``UnknownFormatError`` for a version after 2.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            header = _read_header(self._file)
            self._extents = _find_tensors(self._file, header)
        except BaseException:
            self._file.close()
            raise
        shapes = expected_tensors(header.config)
        self.config = header.config
        self.format = _describe(header)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: TensorInfo(name, shapes[name], TensorType.F32) for name in self._extents}
        )
        self.metadata: Mapping[str, Any] = MappingProxyType(
            {"version": header.version, "group_size": header.group_size, "tied": header.tied}
        )

    def read(self, name: str) -> Tensor:
        """Return a view of a float32 tensor, or the numbers of an int8 one in memory."""
        extent = self._extent(name)
        info = self.tensors[name]
        stored = self._file.view(extent.offset, extent.length)
        if extent.group_size:
            stored = _ungroup(stored, math.prod(info.shape), extent.group_size)
        return Tensor(info, stored.reshape(math.prod(info.shape[:-1]), -1))

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system."""
        extent = self._extent(name)
        self._file.release(extent.offset, extent.length)

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def _extent(self, name: str) -> _Extent:
        if name not in self._extents:
            raise TensorError(self.path, f"there is no tensor {name} in this file")
        return self._extents[name]


def _has_magic(file: MappedFile) -> bool:
    return file.size >= len(MAGIC) and file.view(0, len(MAGIC)).tobytes() == MAGIC


def _read_header(file: MappedFile) -> _Header:
    if not _has_magic(file):
        sizes = _SIZES.unpack(file.view(0, _SIZES.size).tobytes())
        config = _config(file.path, sizes)
        return _Header(LEGACY, config, sizes[5] > 0, 0, _SIZES.size)
    header = file.view(0, _HEADER_BYTES).tobytes()
    _, version = _VERSION.unpack_from(header)
    if version not in {FLOATS, GROUPS}:
        raise UnknownFormatError(
            file.path, f"this is version {version} of llama2.c's format; 1 and 2 are read"
        )
    sizes = _SIZES.unpack_from(header, _VERSION.size)
    if sizes[5] < 1:
        raise CorruptFileError(file.path, f"the header says that vocab_size is {sizes[5]}")
    tied, group_size = _FLAGS.unpack_from(header, _VERSION.size + _SIZES.size)
    if tied > 1 or (version == GROUPS and group_size < 1):
        raise CorruptFileError(
            file.path, f"the header has the tied flag {tied} and groups of {group_size}"
        )
    groups = group_size if version == GROUPS else 0
    return _Header(version, _config(file.path, sizes), bool(tied), groups, _HEADER_BYTES)


def _config(path: Path, sizes: tuple[int, ...]) -> ModelConfig:
    dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, context_length = sizes
    if n_heads < 1 or dim % n_heads:
        raise CorruptFileError(path, f"the header divides a dim of {dim} among {n_heads} heads")
    if n_kv_heads < 1:
        raise CorruptFileError(path, f"the header says that there are {n_kv_heads} KV heads")
    config = ModelConfig(
        architecture="llama",
        vocab_size=abs(vocab_size),
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        norm_eps=NORM_EPS,
        rope_theta=ROPE_THETA,
        context_length=context_length,
    )
    check_config(path, config)
    return config


def _find_tensors(file: MappedFile, header: _Header) -> dict[str, _Extent]:
    """Lay the tensors out as the header demands and check that they fill the file."""
    shapes = expected_tensors(header.config)
    extents: dict[str, _Extent] = {}
    offset = header.length
    for name in _names(header):
        if name == _ROPE_TABLES:
            offset += header.config.context_length * header.config.head_dim * _FLOAT_BYTES
            continue
        extents[name] = _place(file, name, shapes[name], offset, header.group_size)
        offset += extents[name].length
    if offset != file.size:
        raise CorruptFileError(
            file.path,
            f"the header says that the file has {offset} bytes, but it has {file.size}; it is "
            f"truncated, damaged, or no llama2.c checkpoint",
        )
    return extents


def _names(header: _Header) -> Iterator[str]:
    """Yield the names in the order of the file."""
    for pattern in _LEGACY_ORDER if header.version == LEGACY else _ORDER:
        if "*" in pattern:
            yield from (pattern.replace("*", str(i)) for i in range(header.config.n_layers))
        elif not (header.tied and pattern == "output.weight"):
            yield pattern


def _place(
    file: MappedFile, name: str, shape: tuple[int, ...], offset: int, group_size: int
) -> _Extent:
    numbers = math.prod(shape)
    if not group_size or len(shape) == 1:  # norms are float32 in every version
        return _Extent(offset, numbers * _FLOAT_BYTES, 0)
    if numbers % group_size:
        raise CorruptFileError(
            file.path, f"the {numbers} numbers of {name} make no whole groups of {group_size}"
        )
    return _Extent(offset, numbers + numbers // group_size * _FLOAT_BYTES, group_size)


def _ungroup(stored: NDArray[np.uint8], numbers: int, group_size: int) -> NDArray[np.uint8]:
    """Return the float32 bytes of int8 groups; groups go across the ends of rows."""
    groups = stored[:numbers].view(np.int8).reshape(-1, group_size)
    scales = stored[numbers:].view("<f4").reshape(-1, 1)
    weights = np.empty(groups.shape, dtype=np.float32)
    with np.errstate(all="ignore"):
        np.multiply(groups, scales, out=weights)
    return weights.reshape(-1).view(np.uint8)


def _describe(header: _Header) -> str:
    if header.version == LEGACY:
        return "llama2.c, legacy"
    if header.version == GROUPS:
        return f"llama2.c 2, int8 in groups of {header.group_size}"
    return f"llama2.c {header.version}"
