"""The memory of the KV cache, and what the kernels must know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.core import BLOCK_TOKENS
from pyrllama.cpu import compiler, target
from pyrllama.cpu.scratch import round_up
from pyrllama.cpu.weights import Arena
from pyrllama.errors import BackendError
from pyrllama.quants import row_bytes
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

KV_PADDING = {TensorType.F16: 16, TensorType.F32: 16, TensorType.Q8_0: 32}
"""Types of the KV cache, and the numbers to a multiple of which a head is padded in it."""


def head_stride(config: ModelConfig, kv_type: TensorType) -> int:
    """Return the numbers that a head takes in a cache of this type."""
    return round_up(config.head_dim, KV_PADDING[kv_type])


def layer_bytes_per_token(config: ModelConfig, kv_type: TensorType) -> int:
    """Return the bytes of a token's keys and values in one layer."""
    return 2 * config.n_kv_heads * row_bytes(kv_type, head_stride(config, kv_type))


def kv_bytes_per_token(config: ModelConfig, kv_type: TensorType) -> int:
    """Return the bytes of a token's keys and values in all layers."""
    return config.n_layers * layer_bytes_per_token(config, kv_type)


def kernel_names(kv_type: TensorType) -> tuple[str, str]:
    """Return the kernels that fill a cache of this type and attend over it.

    With 32 vector registers of 512 bits, attention works on twice as wide tiles.
    """
    kind = kv_type.name.lower()
    wide = "_wide" if target.chosen().has("avx512f") else ""
    return f"kv_cache.store_{kind}", f"attention.attend_{kind}{wide}"


class KvMemory:
    """The blocks of a cache for some layers, with the kernels that fill and read them."""

    def __init__(
        self, config: ModelConfig, kv_type: TensorType, n_blocks: int, n_layers: int
    ) -> None:
        self.n_blocks = n_blocks
        self._layer_bytes = layer_bytes_per_token(config, kv_type) * BLOCK_TOKENS
        self._block_bytes = self._layer_bytes * n_layers
        self.bytes_per_token = self._block_bytes // BLOCK_TOKENS
        self._format = f"{kv_type.name} {n_layers}x{config.n_kv_heads}x{config.head_dim}"
        self.head_stride = head_stride(config, kv_type)
        self.blocks = _zeroed(n_blocks * self._block_bytes)
        self.store, self.attend = map(compiler.load, kernel_names(kv_type))

    def fields(self) -> dict[str, int]:
        """Return the fields of a STEP record that describe the cache."""
        return {
            "head_stride": self.head_stride,
            "cache": self.blocks.ctypes.data,
            "block_bytes": self._block_bytes,
            "layer_bytes": self._layer_bytes,
            "store": self.store.address,
            "attend": self.attend.address,
        }

    @property
    def block_format(self) -> str:
        """What the bytes of a block depend on: type, layers, heads, and the code that made them."""
        return f"cpu {self._format} {compiler.code_key()}"

    def read(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of the bytes of a block."""
        return self._bytes(block).copy()

    def write(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block; raises ``BackendError`` for bytes that are not a block's."""
        if data.shape != (self._block_bytes,):
            raise BackendError(
                f"a block of this KV cache has {self._block_bytes} bytes, but {data.size} are given"
            )
        self._bytes(block)[:] = data

    def _bytes(self, block: int) -> NDArray[np.uint8]:
        if not 0 <= block < self.n_blocks:
            raise BackendError(f"cache blocks must be from 0 to {self.n_blocks - 1}")
        return self.blocks[block * self._block_bytes : (block + 1) * self._block_bytes]


def _zeroed(n_bytes: int) -> NDArray[np.uint8]:
    """Return memory of huge pages, which stay virtual until they are written."""
    try:
        return Arena(n_bytes).take(n_bytes)
    except BackendError as error:
        raise BackendError(
            f"{n_bytes / 1e9:.1f} GB for the KV cache cannot be had ({error.__cause__}); lower "
            f"--max-seq-len, or take half with --kv-type q8_0"
        ) from error
