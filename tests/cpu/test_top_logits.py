"""The greatest logits of a row as the CPU backend finds them, by the runs that it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.cpu_models import cpu_model
from support.kernels import EXACT_ISAS, call, each_isa
from support.tiny_models import chunk_of, random_weights, tiny_config
from support.top_logits import check_texts, check_top

from pyrllama.core import Batch, TopLogits
from pyrllama.cpu.records import MATRIX, STEP, Records
from pyrllama.cpu.scratch import Rows
from pyrllama.cpu.top_logits import LogitRuns
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import LogitRow
    from pyrllama.cpu.target import Isa

    Logits = NDArray[np.float32]

SIZES = (128, 1000, 32_000, 50_257)
"""Vocabularies: runs of all of them, and last ones that are not whole."""


def normal(n_rows: int, size: int, seed: int = 0) -> Logits:
    return np.random.default_rng(seed).normal(0, 3, (n_rows, size)).astype(np.float32)


def top_of(isa: Isa, values: Logits, k: int, n_threads: int = 1) -> list[LogitRow]:
    """Return what the kernel and the runs tell of rows; garbage is behind each."""
    n_rows, size = values.shape
    logits, runs, matrix = Rows(n_rows, size), LogitRuns(n_rows, size), Records(MATRIX)
    logits.values[:] = np.inf
    logits.values[:n_rows, :size] = values
    matrix.set(n_rows=size)
    step = Records(STEP)
    step.set(
        output=matrix.address,
        n_outputs=n_rows,
        logits=logits.address,
        logits_stride=logits.stride,
        n_threads=n_threads,
        **runs.fields,
    )
    for of_rows in (False, True):
        for worker in range(n_threads):
            call("logit_runs.sum_up_kernel", isa, step.address, worker, of_rows)
    return [runs.top(row, logits.values[row, :size], k) for row in range(n_rows)]


@each_isa
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 2, 8, 21, 128])
def test_the_greatest_logits_of_rows(isa: Isa, size: int, k: int) -> None:
    rows = normal(6, size)
    rows[1] = np.round(rows[1])  # many are equal, of which the lowest ids come first
    rows[2] = 1.5
    rows[3, : size // 2] = -1e30
    rows[4, -1] = 400
    rows[5] = -rows[5] * rows[5] - 1000
    for row, found in zip(rows, top_of(isa, rows, k), strict=True):
        assert isinstance(found, TopLogits)
        check_top(found, row, k)


@each_isa
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 77, 999])
def test_rows_that_are_not_finite_are_given_whole(isa: Isa, odd: float, place: int) -> None:
    rows = normal(2, 1000)
    rows[0, place] = odd
    for k in (1, 5):
        whole, found = top_of(isa, rows, k)
        assert isinstance(whole, np.ndarray)
        np.testing.assert_array_equal(whole, rows[0])
        assert isinstance(found, TopLogits)


@each_isa
def test_threads_give_what_one_gives(isa: Isa) -> None:
    rows = normal(3, 5003)
    alone = top_of(isa, rows, 9)
    for n_threads in (2, 3, 100):
        for one, several in zip(alone, top_of(isa, rows, 9, n_threads), strict=True):
            assert isinstance(one, TopLogits)
            assert isinstance(several, TopLogits)
            np.testing.assert_array_equal(one.ids, several.ids)
            assert one.mass == several.mass


@pytest.mark.parametrize("threads", [1, 2])
def test_texts_are_those_of_whole_rows(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(vocab_size=1300)
    weights = random_weights(config)
    with cpu_model(config, weights, EXACT_ISAS[0], TensorType.F16, threads=threads) as model:
        check_texts(model, monkeypatch)
        batch = Batch((chunk_of([5, 6], 0, outputs=2),))
        whole = model.forward(batch)
        for k in (1, 10, 400):
            for row, logits in zip(model.top_logits(batch, k), whole, strict=True):
                assert isinstance(row, TopLogits)
                check_top(row, logits, k)
