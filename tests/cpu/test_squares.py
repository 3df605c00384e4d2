"""Sums of squares of what matrices multiply: the kernel, and a whole model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.cpu_models import cpu_model
from support.kernels import EXACT_ISAS, ActivationArrays, Guarded, call, each_isa
from support.tiny_models import (
    MemoryCheckpoint,
    chunk_of,
    logits_of,
    random_weights,
    tiny_config,
)

from pyrllama.core import Batch
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING
from pyrllama.reference.backend import ReferenceBackend
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from support.tiny_models import Weights

    from pyrllama.cpu.model import CpuModel
    from pyrllama.cpu.target import Isa

    Sums = dict[str, NDArray[np.float64]]

CONFIG = tiny_config(vocab_size=101, ffn_dim=160)
WEIGHTS = random_weights(CONFIG, seed=4)
TOKENS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 75).tolist()
MAX_SEQ_LEN = 256


@each_isa
@pytest.mark.parametrize("cols", [32, 100, 544])
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("row", "n_rows"), [(0, 1), (2, 1), (0, 7)])
def test_squares_are_added_in_order(
    isa: Isa, cols: int, n_threads: int, row: int, n_rows: int
) -> None:
    rng = np.random.default_rng(cols)
    x = rng.normal(0, 3, (7, cols)).astype(np.float32)
    activations = ActivationArrays(x)
    sums = Guarded(activations.n_cols, np.float64)
    sums.array[:] = before = rng.uniform(0, 5, activations.n_cols)
    for worker in range(n_threads):
        call(
            "squares.add_squares_kernel", isa,
            activations.address, row, n_rows, sums.address, worker, n_threads,
        )  # fmt: skip
    expected = before.copy()
    for values in x[row : row + n_rows].astype(np.float64):
        expected[:cols] += values * values
    np.testing.assert_array_equal(sums.array, expected)
    sums.check()


@each_isa
def test_nothing_is_counted_where_nobody_asks(isa: Isa) -> None:
    activations = ActivationArrays(np.ones((1, 32), np.float32))
    call("squares.add_squares_kernel", isa, activations.address, 0, 1, 0, 0, 1)


def counted(model: CpuModel | ReferenceBackend, sizes: list[int]) -> Sums:
    """Return the sums over ``TOKENS``, from a pass for every size."""
    with model.input_squares() as squares:
        start = 0
        for size in sizes:
            model.forward(Batch((chunk_of(TOKENS[start : start + size], start),)))
            start += size
    assert start == len(TOKENS)
    return dict(squares.sums)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_counts_what_the_reference_counts(tied: bool) -> None:
    weights = random_weights(CONFIG, seed=6, tied=tied)
    exact = ReferenceBackend(MemoryCheckpoint(CONFIG, weights), MAX_SEQ_LEN)
    expected = counted(exact, [64, 11])
    for isa in EXACT_ISAS:
        with cpu_model(
            CONFIG, weights, isa, TensorType.F32, threads=2, max_seq_len=MAX_SEQ_LEN,
            kv_type=TensorType.F32,
        ) as model:  # fmt: skip
            found = counted(model, [75])
        matrices = {n for n, w in weights.items() if w.ndim == 2}
        assert set(found) == matrices - (set() if tied else {TOKEN_EMBEDDING})
        assert set(found) == set(expected)
        for name, sums in found.items():
            assert sums.shape == (weights[name].shape[1],)
            np.testing.assert_allclose(sums, expected[name], rtol=1e-4)


def test_the_reference_counts_what_is_multiplied() -> None:
    inputs: Sums = {}

    class Watched(ReferenceBackend):
        def _multiply(self, x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
            name = next(n for n, values in self._weights.items() if values is w)
            before = inputs.get(name, np.zeros(w.shape[1]))
            inputs[name] = before + (x.astype(np.float64) ** 2).sum(axis=0)
            return super()._multiply(x, w)

    model = Watched(MemoryCheckpoint(CONFIG, WEIGHTS), MAX_SEQ_LEN)
    found = counted(model, [60, 15])
    assert set(found) == set(inputs)
    for name, sums in found.items():
        np.testing.assert_allclose(sums, inputs[name], rtol=1e-12)
    logits_of(model, TOKENS[:3])  # closed, it counts no more
    np.testing.assert_allclose(found[OUTPUT], counted(model, [60, 15])[OUTPUT], rtol=1e-12)


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("isa", EXACT_ISAS, ids=lambda isa: isa.name)
def test_neither_cuts_nor_threads_change_a_bit(isa: Isa, kind: TensorType) -> None:
    def model(threads: int, weights: Weights = WEIGHTS):  # type: ignore[no-untyped-def]
        return cpu_model(CONFIG, weights, isa, kind, threads=threads, max_seq_len=MAX_SEQ_LEN)

    with model(2) as two, model(1) as one:
        plain = logits_of(two, TOKENS)
        whole = counted(two, [75])
        for found in (
            counted(one, [75]),
            counted(two, [1] * 75),
            counted(two, [31, 1, 1, 42]),
            counted(two, [75]),
        ):
            for name, sums in whole.items():
                np.testing.assert_array_equal(found[name], sums)
        with two.input_squares():
            np.testing.assert_array_equal(logits_of(two, TOKENS), plain)
        np.testing.assert_array_equal(logits_of(two, TOKENS), plain)


def test_only_wanted_logits_count_for_the_output() -> None:
    with (
        cpu_model(CONFIG, WEIGHTS, EXACT_ISAS[0], TensorType.F32) as model,
        model.input_squares() as squares,
    ):
        model.forward(Batch((chunk_of(TOKENS[:20], outputs=0),)))
        sums = squares.sums
        assert not sums[OUTPUT].any()
        assert sums["blk.0.attn_q.weight"].all()
        assert sums["blk.0.attn_q.weight"] is sums["blk.0.attn_v.weight"]
