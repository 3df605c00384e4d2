"""What stands between the products of a batch, in sizes that are no whole tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.opencl_kernels import Kernels
from support.tiny_models import tiny_config

from pyrllama.opencl.batch import COLUMNS, HEADER
from pyrllama.opencl.launches import AS_FLOATS, AS_HALVES
from pyrllama.opencl.layout import ROW_ALIGN, round_up
from pyrllama.reference import ops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.opencl.device import Device

    Floats = NDArray[np.float32]

N_ROWS = 7
EPS = 1e-5
MAX_TOKENS = 96
orders = pytest.mark.parametrize("order", [AS_FLOATS, AS_HALVES], ids=["floats", "halves"])


@pytest.fixture(scope="module")
def kernels(device: Device) -> Kernels:
    return Kernels(device, tiny_config(dim=80, head_dim=20, ffn_dim=172, vocab_size=31))


def normal(*shape: int) -> Floats:
    return np.random.default_rng(sum(shape)).normal(0, 1, shape).astype(np.float32)


def check(kernels: Kernels, out: Any, expected: Floats, order: int) -> None:
    """Compare rows as a product reads them: in their order, with zeros behind their ends."""
    n_rows, cols = expected.shape
    dtype = np.float32 if order == AS_FLOATS else np.float16
    stride = round_up(cols, ROW_ALIGN)
    rows = kernels.read(out, (n_rows, stride), dtype)
    rounding = 1e-5 if order == AS_FLOATS else 2e-3
    np.testing.assert_allclose(rows[:, :cols], expected, atol=rounding, rtol=rounding)
    assert not rows[:, cols:].any()


@orders
@pytest.mark.parametrize("outputs", [False, True], ids=["all_rows", "outputs"])
def test_normalise_rows(kernels: Kernels, order: int, outputs: bool) -> None:
    cols = kernels.config.dim
    stride, out_stride = round_up(cols, 32), round_up(cols, ROW_ALIGN)
    x, weight = normal(N_ROWS, cols), normal(cols)
    chosen = [6, 2, 3] if outputs else list(range(N_ROWS))
    batch = np.zeros(HEADER + COLUMNS * MAX_TOKENS, np.int32)
    batch[HEADER + 3 * MAX_TOKENS :][: len(chosen)] = chosen
    out = kernels.buffer(np.full((len(chosen), out_stride), np.nan, np.float32))
    kernels.run(
        "normalise_rows",
        len(chosen),
        np.pad(x, ((0, 0), (0, stride - cols))),
        np.pad(weight, (0, stride - cols)),
        batch,
        out,
        *(cols, stride, out_stride, EPS, order, int(outputs)),
    )
    check(kernels, out, ops.rms_norm(x[chosen], weight, EPS), order)


@orders
def test_swiglu_rows(kernels: Kernels, order: int) -> None:
    cols = kernels.config.ffn_dim
    in_stride, stride = round_up(2 * cols, 32), round_up(cols, ROW_ALIGN)
    gate, up = 8 * normal(N_ROWS, cols), normal(N_ROWS, cols + 1)[:, 1:]
    rows = np.pad(np.hstack([gate, up]), ((0, 0), (0, in_stride - 2 * cols)))
    out = kernels.buffer(np.full((N_ROWS, stride), np.nan, np.float32))
    kernels.run("swiglu_rows", N_ROWS, rows, out, cols, in_stride, stride, order)
    check(kernels, out, ops.swiglu(gate, up), order)


@orders
def test_join_rows(kernels: Kernels, order: int) -> None:
    config, splits = kernels.config, kernels.tuning.splits
    stride = round_up(config.q_dim, 32)
    parts = normal(N_ROWS, splits, config.q_dim)
    tops = 3 * normal(N_ROWS, splits, config.n_heads)
    sums = 1 + np.abs(normal(N_ROWS, splits, config.n_heads))
    padded = np.pad(parts, ((0, 0), (0, 0), (0, stride - config.q_dim)))
    out = kernels.buffer(np.full((N_ROWS, round_up(config.q_dim, ROW_ALIGN)), np.nan, np.float32))
    kernels.run("join_rows", N_ROWS, padded, np.stack([tops, sums], axis=-1), out, order)
    powers = np.exp2(tops - tops.max(axis=1, keepdims=True))
    by_head = parts.reshape(N_ROWS, splits, config.n_heads, config.head_dim)
    values = np.einsum("rshd,rsh->rhd", by_head, powers)
    joined = values / np.sum(powers * sums, axis=1)[:, :, None]
    check(kernels, out, joined.reshape(N_ROWS, -1), order)
