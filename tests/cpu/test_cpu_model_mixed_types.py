"""Models whose matrices want the same activations in different forms, on the CPU."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.kernels import EXACT_ISAS, activation_block, use_isa
from support.tiny_models import MemoryCheckpoint, chunk_of, logits_of, random_weights, tiny_config

from pyrllama.core import Batch
from pyrllama.cpu.model import load_model
from pyrllama.model_config import Experts
from pyrllama.quants import dequantize, quantize
from pyrllama.reference import ReferenceModel, ops
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pyrllama.cpu.model import CpuModel
    from pyrllama.cpu.target import Isa

DENSE = tiny_config(dim=256, head_dim=64, n_heads=4, n_kv_heads=2, ffn_dim=1280, vocab_size=101)
"""80 groups of rows in the FFN's inner matrices: not all threads take as many."""
CONFIGS = {"dense": DENSE, "experts": dataclasses.replace(DENSE, experts=Experts(4, 2))}
TYPES = {
    "attn_q": TensorType.Q4_K,
    "attn_k": TensorType.Q8_0,
    "attn_v": TensorType.F16,
    "attn_output": TensorType.Q6_K,
    "ffn_gate": TensorType.Q5_0,
    "ffn_up": TensorType.Q3_K,
    "ffn_down": TensorType.Q5_K,
    "token_embd": TensorType.Q8_0,
    "output": TensorType.Q2_K,
}
"""Types of blocks, of super-blocks and of floats, side by side."""
TOKENS = np.random.default_rng(8).integers(0, DENSE.vocab_size, 45).tolist()


def type_of(name: str) -> TensorType:
    """Return the type of a matrix; routers stay as they are."""
    part = name.removesuffix(".weight").rpartition(".")[2].removesuffix("_exps")
    return TYPES.get(part, TensorType.F32)


@cache
def checkpoint_of(name: str) -> MemoryCheckpoint:
    """Return a checkpoint of random weights in those types."""
    weights = random_weights(CONFIGS[name], seed=9, std=0.05)
    checkpoint = MemoryCheckpoint(CONFIGS[name], weights)
    checkpoint.tensors = {
        tensor: dataclasses.replace(info, type=type_of(tensor)) if len(info.shape) > 1 else info
        for tensor, info in checkpoint.tensors.items()
    }
    return checkpoint


class MixedReference:
    """The reference on the numbers that the types hold, with each type's activations."""

    def __init__(self, name: str) -> None:
        checkpoint = checkpoint_of(name)
        self._products: dict[bytes, partial[NDArray[np.float32]]] = {}
        numbers = dict(checkpoint._weights)
        for tensor, info in checkpoint.tensors.items():
            if len(info.shape) > 1:
                stored = quantize(info.type, numbers[tensor].reshape(-1, info.shape[-1]))
                values = dequantize(info.type, stored, info.shape[-1]).reshape(info.shape)
                numbers[tensor] = values
                for matrix in values.reshape(-1, *info.shape[-2:]):
                    self._products[self._key(matrix)] = self._product(info.type)
        self.model = ReferenceModel(
            checkpoint.config, numbers, 3, kv_dtype=np.float16, matmul=self._multiply
        )

    @staticmethod
    def _key(matrix: NDArray[np.float32]) -> bytes:
        return matrix[:2].tobytes()

    @staticmethod
    def _product(kind: TensorType) -> partial[NDArray[np.float32]]:
        if kind in {TensorType.F16, TensorType.F32}:
            return partial(ops.matmul)
        return partial(ops.matmul_int8, block=activation_block(kind))

    def _multiply(self, x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._products[self._key(w)](x, w)


def load(name: str, isa: Isa, threads: int) -> CpuModel:
    """Load a model on an instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        use_isa(patch, isa)
        return load_model(checkpoint_of(name), max_seq_len=96, threads=threads)


@pytest.fixture(scope="module", params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module", params=EXACT_ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    chosen: Isa = request.param
    return chosen


@pytest.fixture(scope="module")
def model(name: str, isa: Isa) -> Iterator[CpuModel]:
    model = load(name, isa, 2)
    yield model
    model.close()


@pytest.fixture(scope="module")
def whole(model: CpuModel) -> NDArray[np.float32]:
    """Return the logits after every token, from one pass."""
    return logits_of(model, TOKENS)


def test_logits_equal_the_reference(name: str, whole: NDArray[np.float32]) -> None:
    expected = logits_of(MixedReference(name).model, TOKENS)
    errors = np.max(np.abs(whole - expected), axis=1) / expected.std()  # (tokens,)
    assert errors[0] < 1e-4  # before any activation is so near a half that it rounds otherwise
    # Where two experts are about as probable, roundings can have the other one chosen.
    assert np.count_nonzero(errors > 0.2) <= (4 if name == "experts" else 0)
    assert np.median(errors) < 0.1


@pytest.mark.parametrize("sizes", [[1] * 45, [2, 3, 1, 7, 32], [44, 1]], ids=len)
def test_chunks_equal_the_whole(
    model: CpuModel, whole: NDArray[np.float32], sizes: list[int]
) -> None:
    rows, start = [], 0
    for size in sizes:
        rows.append(model.forward(Batch((chunk_of(TOKENS[start : start + size], start),))))
        start += size
    np.testing.assert_array_equal(np.concatenate(rows), whole)


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_the_number_of_threads_does_not_matter(
    name: str, isa: Isa, whole: NDArray[np.float32], threads: int
) -> None:
    model = load(name, isa, threads)
    np.testing.assert_array_equal(logits_of(model, TOKENS[:44]), whole[:44])
    last = model.forward(Batch((chunk_of(TOKENS[44:], 44),)))
    np.testing.assert_array_equal(last, whole[44:])
    model.close()
