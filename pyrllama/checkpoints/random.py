"""Checkpoints of random weights at real shapes, made in memory to measure speed.

The speed of a forward pass does not depend on the weights' values as long as all stay finite,
so a benchmark needs no download.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.checkpoints.base import Checkpoint
from pyrllama.errors import SettingError, TensorError
from pyrllama.model_config import Experts, Llama3Rope, ModelConfig
from pyrllama.models.llama import OUTPUT, expected_tensors, is_router
from pyrllama.models.rope import ROPE_FACTORS
from pyrllama.quants import WRITABLE, names_of, quantize, row_bytes
from pyrllama.tensors import Tensor, TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_LLAMA_7B = ModelConfig(
    architecture="llama",
    vocab_size=32_000,
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    ffn_dim=11_008,
    norm_eps=1e-6,
    rope_theta=10_000.0,
    context_length=2048,
)

SHAPES: dict[str, ModelConfig] = {
    "7b": _LLAMA_7B,
    "13b": dataclasses.replace(
        _LLAMA_7B, dim=5120, n_layers=40, n_heads=40, n_kv_heads=40, ffn_dim=13_824
    ),
    "30b": dataclasses.replace(
        _LLAMA_7B, dim=6656, n_layers=60, n_heads=52, n_kv_heads=52, ffn_dim=17_920
    ),
    "65b": dataclasses.replace(
        _LLAMA_7B, dim=8192, n_layers=80, n_heads=64, n_kv_heads=64, ffn_dim=22_016
    ),
    "1b": ModelConfig(
        architecture="llama",
        vocab_size=128_256,
        dim=2048,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        head_dim=64,
        ffn_dim=8192,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        context_length=131_072,
        rope_scaling=Llama3Rope(factor=32.0),
    ),
    "110m": ModelConfig(
        architecture="llama",
        vocab_size=32_000,
        dim=768,
        n_layers=12,
        n_heads=12,
        n_kv_heads=12,
        head_dim=64,
        ffn_dim=2048,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        context_length=1024,
    ),
    "30b-a3b": ModelConfig(
        architecture="qwen3moe",
        vocab_size=151_936,
        dim=2048,
        n_layers=48,
        n_heads=32,
        n_kv_heads=4,
        head_dim=128,
        ffn_dim=768,
        norm_eps=1e-6,
        rope_theta=1_000_000.0,
        context_length=40_960,
        qk_norm=True,
        experts=Experts(count=128, used=8),
    ),
}
"""LLaMA 1 (7b to 65b), Llama 3.2 1B, llama2.c's stories110M, and Qwen3-30B-A3B."""
_TIED = (SHAPES["1b"], SHAPES["110m"])
_POOL_NUMBERS = 1 << 21
"""Random numbers made for each row length; tensors repeat them from a row of their own."""


class RandomCheckpoint(Checkpoint):
    """A model of the given shape whose matrices are random and whose norms are 1.

    Weights are normally distributed with variance ``1 / cols``, which keeps activations
    finite.  The same ``seed`` gives the same weights in whatever order they are read.
    ``tied`` leaves the output projection out; None does so for the shapes published like that.
    ``types`` are those of single tensors that differ, as in a mixture.

    Raises ``SettingError`` for a type that cannot be made, or whose blocks do not fit the rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        type_: TensorType,
        seed: int = 0,
        *,
        tied: bool | None = None,
        types: Mapping[str, TensorType] = MappingProxyType({}),
    ) -> None:
        for wanted in (type_, *types.values()):
            if wanted not in WRITABLE:
                raise SettingError("the tensor type", wanted.name, f"one of {names_of(WRITABLE)}")
        self.path = Path("random weights")
        self.format = f"random weights, {type_.name}"
        self.config = config
        self.metadata: Mapping[str, Any] = MappingProxyType({"seed": seed})
        if tied is None:
            tied = config in _TIED
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {
                name: dataclasses.replace(info, type=types.get(name, info.type))
                for name, info in _tensors(config, type_, tied).items()
            }
        )
        self._seed = seed
        self._numbers = {name: number for number, name in enumerate(self.tensors)}
        self._pools: dict[tuple[TensorType, int], NDArray[np.uint8]] = {}
        for info in self.tensors.values():
            row_bytes(info.type, info.shape[-1])

    def read(self, name: str) -> Tensor:
        """Return a tensor of random rows, made anew at every call; norms are ones."""
        if name not in self.tensors:
            raise TensorError(self.path, f"there is no tensor {name} in this model")
        info = self.tensors[name]
        rows, cols = math.prod(info.shape[:-1]), info.shape[-1]
        if len(info.shape) == 1:
            return Tensor(info, quantize(info.type, np.ones((1, cols), dtype=np.float32)))
        pool = self._pool(info.type, cols)
        start = np.random.default_rng((self._seed, self._numbers[name])).integers(len(pool))
        return Tensor(info, _repeat(np.roll(pool, -start, axis=0), rows))

    def release(self, name: str) -> None:
        """Do nothing: no file is behind the tensors."""

    def close(self) -> None:
        """Forget the random numbers that tensors are made of."""
        self._pools.clear()

    def _pool(self, type_: TensorType, cols: int) -> NDArray[np.uint8]:
        """Return a few stored rows of ``cols`` random weights."""
        if (type_, cols) not in self._pools:
            random = np.random.default_rng((self._seed, len(self.tensors), cols))
            rows = max(1, _POOL_NUMBERS // cols)
            weights = random.standard_normal((rows, cols), dtype=np.float32)
            weights *= np.float32(1.0 / math.sqrt(cols))
            self._pools[type_, cols] = quantize(type_, weights)
        return self._pools[type_, cols]


def _tensors(config: ModelConfig, type_: TensorType, tied: bool) -> dict[str, TensorInfo]:
    left_out = {ROPE_FACTORS, OUTPUT} if tied else {ROPE_FACTORS}
    return {
        name: TensorInfo(
            name, shape, TensorType.F32 if len(shape) == 1 or is_router(name) else type_
        )
        for name, shape in expected_tensors(config).items()
        if name not in left_out
    }


def _repeat(pool: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
    """Return ``rows`` rows: those of the pool over and over."""
    out = np.empty((rows, pool.shape[1]), dtype=np.uint8)
    for start in range(0, rows, len(pool)):
        part = out[start : start + len(pool)]
        part[:] = pool[: len(part)]
    return out
