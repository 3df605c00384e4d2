"""Steps begun before they are asked for: texts stay the same, each serves its own batch only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.opencl_models import opencl_model
from support.tiny_models import chunk_of, random_weights, tiny_config

from pyrllama.core import BLOCK_TOKENS, Batch, Chunk, TopLogits
from pyrllama.opencl.ahead import may_follow
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.core import LogitRow
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.model import OpenClModel

CONFIG = tiny_config(vocab_size=600)
FIRST = 5


@pytest.fixture(scope="module", params=[False, True], ids=["launches", "one_kernel"])
def model(device: Device, request: pytest.FixtureRequest) -> Iterator[OpenClModel]:
    weights = random_weights(CONFIG, seed=4, std=0.3)
    with opencl_model(device, CONFIG, weights, TensorType.F16, persistent=request.param) as loaded:
        yield loaded


def step(token: int, start: int) -> Batch:
    return Batch((chunk_of([token], start, outputs=1),))


def first_of(row: LogitRow) -> int:
    return int(row.ids[0]) if isinstance(row, TopLogits) else int(np.argmax(row))


def greedy_by(model: OpenClModel, n_tokens: int, *, ahead: bool) -> list[int]:
    text = [FIRST]
    while len(text) <= n_tokens:
        batch = step(text[-1], len(text) - 1)
        row = model.top_logits(batch, 1)[0] if ahead else model.forward(batch)[0]
        text.append(first_of(row))
    return text


def test_a_greedy_text_is_the_same_and_its_batches_are_made_on_the_device(
    model: OpenClModel, filled: list[Batch]
) -> None:
    n_tokens = 2 * BLOCK_TOKENS + 5
    text = greedy_by(model, n_tokens, ahead=True)
    # A block is the host's to give: the first step of each one is asked for.
    assert [batch.chunks[0].start for batch in filled] == [0, BLOCK_TOKENS, 2 * BLOCK_TOKENS]
    assert text == greedy_by(model, n_tokens, ahead=False)
    assert len(set(text)) > 3


def test_another_token_than_the_likeliest(model: OpenClModel, filled: list[Batch]) -> None:
    text = greedy_by(model, 9, ahead=True)
    other = step((text[9] + 1) % CONFIG.vocab_size, 9)
    expected = model.forward(other)[0]
    model.top_logits(step(text[8], 8), 1)
    (row,) = model.top_logits(other, 1)
    assert isinstance(row, TopLogits)
    assert filled[-1] is other
    assert (row.ids[0], row.logits[0]) == (np.argmax(expected), np.max(expected))


@pytest.mark.parametrize("changed", ["another_start", "other_blocks", "all_logits", "two", "cache"])
def test_only_its_own_batch_takes_a_step(
    model: OpenClModel, filled: list[Batch], changed: str
) -> None:
    text = greedy_by(model, 9, ahead=True)
    batch = step(text[9], 9)
    if changed == "another_start":
        batch = step(text[9], 8)
    if changed == "other_blocks":
        batch = Batch((Chunk((text[9],), 9, (2,), 1),))
    if changed == "cache":
        model.write_block(0, model.read_block(0))
    if changed == "all_logits":
        model.forward(batch)
    else:
        model.top_logits(batch, 2 if changed == "two" else 1)
    assert filled[-1] is batch
    assert greedy_by(model, 12, ahead=True) == greedy_by(model, 12, ahead=False)


def test_logits_that_the_device_cannot_order_are_those_of_the_step(device: Device) -> None:
    weights = random_weights(CONFIG, seed=4, std=0.3)
    weights["output.weight"] = np.zeros_like(weights["token_embd.weight"])  # all logits alike
    with opencl_model(device, CONFIG, weights, TensorType.F16) as model:
        (row,) = model.top_logits(step(FIRST, 0), 1)
        np.testing.assert_array_equal(row, np.zeros(CONFIG.vocab_size, np.float32))
        assert first_of(model.top_logits(step(0, 1), 1)[0]) == 0


def test_when_a_step_may_follow() -> None:
    assert may_follow(step(1, 3), 1, max_seq_len=96)
    assert not may_follow(step(1, 3), 2, max_seq_len=96)
    assert not may_follow(step(1, 3), 1, max_seq_len=4)
    assert not may_follow(step(1, BLOCK_TOKENS - 1), 1, max_seq_len=96)
    assert not may_follow(Batch((chunk_of([1, 2], 3, outputs=1),)), 1, max_seq_len=96)
    assert not may_follow(Batch((chunk_of([1], 3, outputs=0),)), 1, max_seq_len=96)
