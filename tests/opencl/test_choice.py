"""The greatest logits of a row as the device finds them, and texts that are chosen from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.opencl_kernels import Kernels
from support.opencl_models import opencl_model
from support.tiny_models import chunk_of, random_weights, tiny_config
from support.top_logits import check_texts, check_top

from pyrllama.core import Batch, TopLogits
from pyrllama.opencl.batch import HEADER, TOP
from pyrllama.opencl.choice import MOST_ROWS, TOP_ROOM, TOP_WORDS, can_choose, n_parts, top_of
from pyrllama.opencl.tuning import top_part
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device

    Rows = NDArray[np.float32]

SIZES = (600, 32_000, 50_257)
"""Vocabularies: with parts of 32 logits and of 64, the last ones not whole."""


def normal(n_rows: int, size: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).normal(0, 3, (n_rows, size)).astype(np.float32)


@pytest.fixture(scope="module", params=SIZES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return tiny_config(vocab_size=request.param)


@pytest.fixture(scope="module")
def kernels(device: Device, config: ModelConfig) -> Kernels:
    return Kernels(device, config)


def chosen(kernels: Kernels, rows: Rows, k: int) -> list[TopLogits | None]:
    """Return what the two kernels find of rows of logits."""
    n_rows, size = rows.shape
    n_runs = kernels.tuning.groups
    batch = np.zeros(HEADER, np.int32)
    batch[TOP] = k
    summed = (
        kernels.zeros(n_rows, n_parts(kernels.config, kernels.tuning)),
        kernels.zeros(n_rows, n_runs, 2),
    )
    top = kernels.zeros(n_rows, TOP_WORDS)
    logits = kernels.buffer(rows)
    kernels.run("sum_up_logits", n_rows * n_runs, logits, size, n_runs, *summed)
    kernels.run("choose_logits", n_rows, logits, size, n_runs, *summed, batch, top)
    return [top_of(words, k) for words in kernels.read(top, (n_rows, TOP_WORDS), np.uint32)]


@pytest.mark.parametrize("k", [1, 2, 8, 60, 256])
def test_the_greatest_logits_of_rows(kernels: Kernels, k: int) -> None:
    rows = normal(3, kernels.config.vocab_size)
    rows[1] = np.round(rows[1])  # many are equal, of which the lowest ids come first
    if not can_choose(kernels.config, kernels.tuning, k, 3):
        assert kernels.config.vocab_size == SIZES[0]
        return
    found = chosen(kernels, rows, k)
    for i in (0, 2):
        check_top(found[i], rows[i], k)
    assert found[1] is not None or k == 256  # there may be more alike than there is room for
    if found[1]:
        check_top(found[1], rows[1], k)


@pytest.mark.parametrize("k", [1, 8])
def test_rows_of_other_kinds(kernels: Kernels, k: int) -> None:
    size = kernels.config.vocab_size
    rows = normal(4, size, seed=1)
    rows[0, :9] = 40 - np.arange(9)  # all in the first part
    rows[1, size // 2] = 400  # far above the others
    rows[2, : size // 2] = -np.inf  # ruled out
    rows[3] = -rows[3] * rows[3] - 1000  # far below zero
    for row, found in zip(rows, chosen(kernels, rows, k), strict=True):
        check_top(found, row, k)


def test_rows_that_the_host_must_look_at(kernels: Kernels) -> None:
    size = kernels.config.vocab_size
    rows = normal(7, size, seed=2)
    rows[0, size // 3] = np.nan
    rows[1, size - 1] = np.inf
    rows[2] = -np.inf
    rows[3] = 1.5  # more alike than there is room for
    rows[4, 5:] = -np.inf  # fewer than are wanted
    rows[5] = np.nan
    rows[6, 20:] = -1e30  # the greatest in one part, and all others alike
    assert size > TOP_ROOM
    assert chosen(kernels, rows, 8) == [None] * 7


def test_parts_cover_a_vocabulary(config: ModelConfig, kernels: Kernels) -> None:
    parts = n_parts(config, kernels.tuning)
    assert parts * top_part(config.vocab_size) >= config.vocab_size
    assert parts <= 1024 + kernels.tuning.groups
    assert not can_choose(config, kernels.tuning, 1, MOST_ROWS + 1)
    assert not can_choose(config, kernels.tuning, parts, 1)


# --- models -----------------------------------------------------------------------------------


def test_texts_are_those_of_whole_rows(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(vocab_size=900)
    with opencl_model(device, config, random_weights(config), TensorType.F16) as model:
        check_texts(model, monkeypatch)
        batch = Batch((chunk_of([5, 6], 0, outputs=2),))
        for row in model.top_logits(batch, 400):  # so many that rows are read whole
            assert isinstance(row, np.ndarray)
            assert row.shape == (900,)
