"""Two sequences that take a step of one kernel each: as alone, and only where that is sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.opencl_models import opencl_model
from support.tiny_models import random_weights, tiny_config

from pyrllama.core import Batch, Chunk, TopLogits
from pyrllama.opencl import in_turn
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyrllama.opencl.device import Device
    from pyrllama.opencl.model import OpenClModel

CONFIG = tiny_config(vocab_size=600)


@pytest.fixture(scope="module")
def model(device: Device) -> Iterator[OpenClModel]:
    weights = random_weights(CONFIG, seed=4, std=0.3)
    with opencl_model(device, CONFIG, weights, TensorType.F16, persistent=True) as loaded:
        for block in range(3):
            loaded.forward(Batch((Chunk((3, 5 + block), 0, (block,), 0),)))
        yield loaded


def tokens_of(blocks: Sequence[int]) -> Batch:
    """Return a batch of a token of each of some sequences."""
    return Batch(tuple(Chunk((7 + block,), 2, (block,), 1) for block in blocks))


def sizes_of(batches: Sequence[Batch]) -> list[int]:
    return [batch.n_tokens for batch in batches]


def test_two_have_the_bits_of_each_alone(model: OpenClModel, filled: list[Batch]) -> None:
    alone = [model.forward(tokens_of([block]))[0] for block in range(2)]
    together = model.forward(tokens_of([0, 1]))
    assert sizes_of(filled) == [1, 1, 1, 1]
    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(*alone)


def test_the_greatest_of_two_begin_no_step_ahead(model: OpenClModel, filled: list[Batch]) -> None:
    logits = model.forward(tokens_of([0, 1]))
    for _ in range(2):
        rows = model.top_logits(tokens_of([0, 1]), 1)
        for row, expected in zip(rows, logits, strict=True):
            assert isinstance(row, TopLogits)
            assert row.ids[0] == np.argmax(expected)
    assert sizes_of(filled) == [1] * 6


def test_three_go_together(model: OpenClModel, filled: list[Batch]) -> None:
    model.forward(tokens_of([0, 1, 2]))
    assert sizes_of(filled) == [3]


def test_two_go_together_through_heavy_layers(
    model: OpenClModel, filled: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = model.forward(tokens_of([0, 1]))
    monkeypatch.setattr(in_turn, "LIGHT_LAYER", 0)
    together = model.forward(tokens_of([0, 1]))
    assert sizes_of(filled) == [1, 1, 2]
    np.testing.assert_allclose(together, apart, atol=0.02 * np.abs(apart).max())


def test_a_prompt_of_two_tokens_is_no_pair(model: OpenClModel, filled: list[Batch]) -> None:
    model.forward(Batch((Chunk((3, 5), 0, (0,), 1),)))
    model.forward(Batch((Chunk((3,), 0, (0,), 0), Chunk((3,), 0, (1,), 1))))
    assert sizes_of(filled) == [2, 2]
