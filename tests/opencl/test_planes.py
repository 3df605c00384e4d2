"""Types whose blocks are cut into planes: the file's numbers, and products of them."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.opencl_kernels import MatrixKernels
from support.opencl_models import opencl_model
from support.tiny_models import MemoryCheckpoint, chunk_of, logits_of, random_weights, tiny_config

from pyrllama.core import Batch
from pyrllama.opencl.layout import extent_of
from pyrllama.opencl.planes import PLANES
from pyrllama.quants import block_size, dequantize, quantize, row_bytes, type_size
from pyrllama.reference import ReferenceModel, ops
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pyrllama.opencl.device import Device

COLS = 1024
each_kind = pytest.mark.parametrize("kind", PLANES, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def of_kind(device: Device) -> Callable[[TensorType], MatrixKernels]:
    """Return what gives the kernels of a type: a program of all of them compiles for long."""
    return cache(lambda kind: MatrixKernels(device, tiny_config(dim=COLS), {kind}))


def random_rows(kind: TensorType, n_rows: int, cols: int, seed: int) -> NDArray[np.uint8]:
    bits = np.random.default_rng(seed)
    return bits.integers(0, 256, (n_rows, row_bytes(kind, cols)), dtype=np.uint8)


@each_kind
@pytest.mark.parametrize("cols", [256, COLS])
def test_the_numbers_are_those_of_the_file(
    of_kind: Callable[[TensorType], MatrixKernels], kind: TensorType, cols: int
) -> None:
    """Of any bits: also of scales that are infinite, denormal or no numbers."""
    rows = random_rows(kind, 90, cols, seed=cols)
    expected = dequantize(kind, rows, cols)
    np.testing.assert_array_equal(of_kind(kind).embedded(kind, rows, cols), expected)


@each_kind
def test_products_equal_the_reference(
    of_kind: Callable[[TensorType], MatrixKernels], kind: TensorType
) -> None:
    kernels = of_kind(kind)
    random = np.random.default_rng(3)
    rows = quantize(kind, random.normal(0, 0.1, (50, COLS)).astype(np.float32))
    weights = dequantize(kind, rows, COLS)
    x = random.normal(0, 1, (40, COLS)).astype(np.float32)
    one = kernels.product("add_product", kind, rows, COLS, x[0])
    np.testing.assert_allclose(one, ops.matmul_int8(x[:1], weights)[0], atol=1e-4, rtol=0)
    many = kernels.tiles(kind, rows, x)
    rounding = 2e-2 if kernels.reads_halves else 1e-4
    np.testing.assert_allclose(many, x @ weights.T, atol=rounding, rtol=0)


def test_rows_that_come_in_segments(device: Device) -> None:
    kinds = (TensorType.Q6_K, TensorType.Q2_K)
    kernels = MatrixKernels(device, tiny_config(dim=COLS), kinds, segment_blocks=8)
    random = np.random.default_rng(4)
    x = random.normal(0, 1, (1, COLS)).astype(np.float32)
    for kind in kinds:
        rows = quantize(kind, random.normal(0, 0.1, (5, COLS)).astype(np.float32))
        expected = ops.matmul_int8(x, dequantize(kind, rows, COLS))[0]
        product = kernels.product("add_product", kind, rows, COLS, x[0])
        np.testing.assert_allclose(product, expected, atol=1e-4, rtol=0)


@each_kind
def test_no_bit_is_added(kind: TensorType) -> None:
    """Rows of a model's size take the bytes of the file, but for ternary digits."""
    surplus = 12 if kind is TensorType.TQ1_0 else 0
    n_blocks = 4096 // block_size(kind)
    taken = extent_of(kind, (1, 4096)).n_bytes
    assert taken == n_blocks * (type_size(kind) + surplus)


def test_a_mixture_of_types_equals_the_reference(device: Device) -> None:
    """As in a Q4_K_M file: layers differ, and so do the matrices that read the same row."""
    sizes = {"dim": 256, "head_dim": 64, "ffn_dim": 512, "vocab_size": 101}
    config = tiny_config(**sizes)
    better = {"blk.0.attn_v.weight", "blk.0.ffn_down.weight", "output.weight"}
    checkpoint = MemoryCheckpoint(config, random_weights(config, seed=1, std=0.05))
    checkpoint.tensors = {
        name: dataclasses.replace(info, type=TensorType.Q6_K if name in better else TensorType.Q4_K)
        if len(info.shape) == 2
        else info
        for name, info in checkpoint.tensors.items()
    }
    tokens = (np.arange(40) * 37 % config.vocab_size).tolist()
    references = [
        ReferenceModel.from_checkpoint(checkpoint, 2, kv_dtype=np.float16, matmul=matmul)
        for matmul in (ops.matmul, ops.matmul_int8)
    ]
    in_batch, alone = (logits_of(model, tokens) for model in references)
    with opencl_model(device, config, checkpoint, persistent=True) as model:
        many = logits_of(model, tokens)
        steps = [model.forward(Batch((chunk_of([t], i, outputs=1),))) for i, t in enumerate(tokens)]
    np.testing.assert_allclose(many, in_batch, atol=1e-2, rtol=0)
    np.testing.assert_allclose(np.concatenate(steps), alone, atol=6e-2, rtol=0)
