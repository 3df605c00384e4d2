"""Misuse of the CPU backend: a named error each, and a model that works on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.cpu_models import cpu_model
from support.kernels import EXACT_ISAS
from support.tiny_models import (
    MemoryCheckpoint,
    chunk_of,
    logits_of,
    random_weights,
    tiny_config,
)

from pyrllama.core import Batch, Chunk
from pyrllama.cpu.model import CpuModel, load_model
from pyrllama.errors import BackendError, SettingError, TensorError, UnsupportedTypeError
from pyrllama.models.rope import ROPE_FACTORS
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)
MAX_SEQ_LEN = 80
"""Three blocks, the last of which may not be filled."""


@pytest.fixture(scope="module")
def model() -> Iterator[CpuModel]:
    with cpu_model(CONFIG, WEIGHTS, EXACT_ISAS[0], threads=2, max_seq_len=MAX_SEQ_LEN) as model:
        yield model


ONE = (1,)
TOO_LONG = tuple(range(MAX_SEQ_LEN + 1))
BAD_CHUNKS: dict[str, tuple[tuple[Chunk, ...], str]] = {
    "no chunks": ((), "a batch of 0 tokens; this model takes 1 to 80"),
    "an empty chunk": ((Chunk((), 0, (0,), 0),), "a batch of 0 tokens"),
    "an empty chunk beside another": (
        (Chunk(ONE, 0, (0,)), Chunk((), 0, (1,), 0)), "0 outputs are wanted of 0 tokens"),
    "a token that does not exist": ((Chunk((128,), 0, (0,)),), "must be from 0 to 127"),
    "a negative token": ((Chunk((-1,), 0, (0,)),), "must be from 0 to 127"),
    "a token beyond 64 bits": ((Chunk((1 << 70,), 0, (0,)),), "must be from 0 to 127"),
    "a bad token at the end": ((Chunk((1, 2, 999), 0, (0,)),), "must be from 0 to 127"),
    "a bad second chunk": (
        (Chunk(ONE, 0, (0,)), Chunk((500,), 0, (1,))), "must be from 0 to 127"),
    "a position beyond the context": (
        (Chunk(ONE, 80, (0, 1, 2)),), "positions 80 to 81.*context holds 80"),
    "a far position": ((Chunk(ONE, 1 << 70, (0, 1, 2)),), "the context holds 80"),
    "a negative position": ((Chunk(ONE, -1, (0,)),), "positions -1 to 0"),
    "too few blocks": ((Chunk(ONE, 32, (0,)),), "positions 32 to 33 in 1 cache blocks of 32"),
    "no blocks": ((Chunk(ONE, 0, ()),), "in 0 cache blocks"),
    "a block that does not exist": ((Chunk(ONE, 0, (3,)),), "must be from 0 to 2"),
    "a negative block": ((Chunk(ONE, 0, (-1,)),), "must be from 0 to 2"),
    "a block beyond 64 bits": ((Chunk(ONE, 0, (1 << 70,)),), "must be from 0 to 2"),
    "a bad block that is not used yet": ((Chunk(ONE, 0, (0, 9)),), "must be from 0 to 2"),
    "too many tokens": (
        (Chunk(TOO_LONG, 0, (0, 1, 2)),), "a batch of 81 tokens; this model takes 1 to 80"),
    "too many tokens together": (
        tuple(Chunk(TOO_LONG[:30], 0, (i,)) for i in range(3)), "a batch of 90 tokens"),
    "more outputs than tokens": (
        (Chunk(ONE, 0, (0,), 2),), "2 outputs are wanted of 1 tokens"),
    "negative outputs": ((Chunk(ONE, 0, (0,), -1),), "-1 outputs are wanted"),
    "outputs that balance over chunks": (
        (Chunk(ONE, 0, (0,), 2), Chunk(ONE, 0, (1,), -1)), "outputs are wanted of 1 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_misuse_is_a_named_error_and_the_model_works_on(model: CpuModel, case: str) -> None:
    chunks, message = BAD_CHUNKS[case]
    before = logits_of(model, range(40))
    with pytest.raises(BackendError, match=message):
        model.forward(Batch(chunks))
    np.testing.assert_array_equal(logits_of(model, range(40)), before)


def test_the_last_position_of_the_context_can_be_used(model: CpuModel) -> None:
    model.forward(Batch((chunk_of(range(79)),)))
    logits = model.forward(Batch((chunk_of([5], 79),)))
    whole = logits_of(model, [*range(79), 5])
    np.testing.assert_array_equal(logits[0], whole[-1])


def test_several_threads_may_call_one_model(model: CpuModel) -> None:
    expected = logits_of(model, range(40))
    results: list[bool] = []

    def work() -> None:
        results.extend(np.array_equal(logits_of(model, range(40)), expected) for _ in range(20))

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [True] * 60


# --- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [-1, 257, 10_000])
def test_an_impossible_number_of_threads_is_a_setting_error(threads: int) -> None:
    with pytest.raises(SettingError, match=f"threads is {threads}"):
        load_model(MemoryCheckpoint(CONFIG, WEIGHTS), max_seq_len=32, threads=threads)


def test_no_number_of_threads_takes_the_machines() -> None:
    model = load_model(MemoryCheckpoint(CONFIG, WEIGHTS), max_seq_len=32)
    assert logits_of(model, range(3)).shape == (3, 128)
    model.close()


def test_a_type_that_cannot_run_is_a_named_error() -> None:
    with pytest.raises(UnsupportedTypeError, match="Q8_1"):
        load_model(
            MemoryCheckpoint(CONFIG, WEIGHTS), type=TensorType.Q8_1, max_seq_len=32, threads=1
        )


def test_a_cache_type_that_does_not_exist_is_a_named_error() -> None:
    with pytest.raises(SettingError, match=r"kv_type is 'Q4_0', but .* one of F16, F32, Q8_0"):
        load_model(
            MemoryCheckpoint(CONFIG, WEIGHTS), kv_type=TensorType.Q4_0, max_seq_len=32, threads=1
        )


def test_a_context_beyond_the_memory_is_a_named_error() -> None:
    with pytest.raises(BackendError):
        load_model(MemoryCheckpoint(CONFIG, WEIGHTS), max_seq_len=1 << 50, threads=1)


def test_broken_rope_factors_are_a_named_error_and_end_the_threads() -> None:
    before = threading.active_count()
    broken = WEIGHTS | {ROPE_FACTORS: np.zeros(8, np.float32)}
    with pytest.raises(TensorError, match="rope_freqs"):
        load_model(MemoryCheckpoint(CONFIG, broken), max_seq_len=32, threads=3)
    assert threading.active_count() == before


def test_progress_counts_the_bytes_of_the_weights() -> None:
    reports: list[tuple[int, int]] = []
    model = load_model(
        MemoryCheckpoint(CONFIG, WEIGHTS),
        type=TensorType.Q8_0,
        max_seq_len=32,
        threads=2,
        progress=lambda done, total: reports.append((done, total)),
    )
    model.close()
    done = [report[0] for report in reports]
    assert done[0] == 0
    assert done[-1] == model.weight_bytes
    assert done == sorted(set(done)), "no report twice, and none backwards"
    assert {report[1] for report in reports} == {model.weight_bytes}
