"""The attention kernels against the reference, and what must not change a bit of their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.attention import MAX_SEQ_LEN, Attention, Tokens, chunk, shape
from support.kernels import each_isa
from support.tiny_models import tiny_config

from pyrllama.core import BLOCK_TOKENS, Batch
from pyrllama.cpu import compiler, target
from pyrllama.cpu.records import SPAN
from pyrllama.cpu.spans import Spans, tiles_of
from pyrllama.quants import dequantize, quantize
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.cpu.target import Isa
    from pyrllama.model_config import ModelConfig

SHAPES = {
    "one head of 20": shape(1, 1, 20),
    "groups of 3, heads of 48": shape(6, 2, 48),
    "groups of 4, heads of 64": shape(4, 1, 64),
    "groups of 8, heads of 80": shape(8, 1, 80),
    "groups of 1, heads of 128": shape(2, 2, 128),
    "groups of 7, heads of 16": shape(7, 1, 16),
}
TOLERANCE = {TensorType.F32: 5e-6, TensorType.F16: 2e-3, TensorType.Q8_0: 4e-2}
"""Greatest error of a mean of values from a normal distribution, keys and values rounded."""
CUTS: dict[str, list[int]] = {
    "whole": [600],
    "one by one at last": [597, 1, 1, 1],
    "across blocks": [31, 2, 250, 1, 60, 256],
    "across parts": [255, 1, 1, 254, 1, 88],
}

each_kv_type = pytest.mark.parametrize("kv_type", TOLERANCE, ids=lambda kind: kind.name)


def in_cuts(
    attention: Attention, tokens: Tokens, sizes: list[int], first: int = 0
) -> NDArray[np.float32]:
    """Return the attention of a sequence that goes through in pieces."""
    rows, start = [], 0
    for size in sizes:
        batch = Batch((chunk(start, start + size, first),))
        rows.append(attention.forward(batch, [tokens], seed=start))
        start += size
    return np.concatenate(rows)


@each_isa
@each_kv_type
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_attention_equals_the_reference(isa: Isa, kv_type: TensorType, config: ModelConfig) -> None:
    tokens = Tokens(config, 600)
    expected = tokens.expected(config)
    results = [
        in_cuts(Attention(isa, config, kv_type, threads=3), tokens, sizes)
        for sizes in CUTS.values()
    ]
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=TOLERANCE[kv_type])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@each_isa
@each_kv_type
def test_the_number_of_threads_does_not_matter(isa: Isa, kv_type: TensorType) -> None:
    config = SHAPES["groups of 3, heads of 48"]
    tokens = Tokens(config, 700)
    results, n_spans = [], []
    for threads in (1, 2, 3, 5, 64):
        attention = Attention(isa, config, kv_type, threads=threads)
        attention.forward(Batch((chunk(0, 690),)), [tokens])
        steps = [Batch((chunk(i, i + 1),)) for i in range(690, 700)]
        results.append([attention.forward(step, [tokens], seed=threads) for step in steps])
        n_spans.append(attention.spans.plan(steps[-1]))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    assert n_spans == [2, 3, 3, 3, 3]


@each_isa
@pytest.mark.parametrize("name", ["groups of 4, heads of 64", "groups of 8, heads of 80"])
def test_the_shape_of_register_tiles_does_not_matter(isa: Isa, name: str) -> None:
    tokens = Tokens(SHAPES[name], 300)
    results = []
    for suffix in ("", "_wide"):
        attention = Attention(isa, SHAPES[name], TensorType.F16)
        attention.memory.attend = compiler.load(f"attention.attend_f16{suffix}", isa)
        results.append(in_cuts(attention, tokens, [297, 1, 2]))
    np.testing.assert_array_equal(results[1], results[0])


@each_isa
@each_kv_type
def test_sequences_together_equal_each_alone(isa: Isa, kv_type: TensorType) -> None:
    config = SHAPES["groups of 4, heads of 64"]
    sequences = [Tokens(config, 600, seed) for seed in range(3)]
    alone = [in_cuts(Attention(isa, config, kv_type), tokens, [600]) for tokens in sequences]
    attention = Attention(isa, config, kv_type, threads=4)
    before = Batch((chunk(0, 599), chunk(0, 40, 1), chunk(0, 300, 2)))
    attention.forward(before, sequences)
    mixed = Batch((chunk(599, 600), chunk(40, 100, 1), chunk(300, 301, 2)))
    together = attention.forward(mixed, sequences)
    expected = [alone[0][599:], alone[1][40:100], alone[2][300:301]]
    np.testing.assert_array_equal(together, np.concatenate(expected))
    decodes = Batch((chunk(100, 101, 1), chunk(301, 302, 2)))
    together = attention.forward(decodes, sequences[1:])
    np.testing.assert_array_equal(together, np.stack([alone[1][100], alone[2][301]]))


@each_isa
@each_kv_type
def test_later_tokens_of_a_batch_reach_no_earlier_one(isa: Isa, kv_type: TensorType) -> None:
    config = SHAPES["groups of 1, heads of 128"]
    tokens = Tokens(config, 90)
    clean = in_cuts(Attention(isa, config, kv_type), tokens, [90])
    tokens.k[71:], tokens.v[71:] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        spoilt = in_cuts(Attention(isa, config, kv_type), tokens, [90])
    np.testing.assert_array_equal(spoilt[:71], clean[:71])


@each_isa
def test_one_huge_score_takes_all(isa: Isa) -> None:
    config = SHAPES["one head of 20"]
    tokens = Tokens(config, 520)
    for position in (3, 300, 515):
        tokens.q[519] = 0
        tokens.q[519, 0, 0] = 1e4
        tokens.k[:] = 0
        # The angles of the first pair: the key that the query meets at its own position.
        turn = float(519 - position)
        tokens.k[position, 0, :2] = np.cos(turn), np.sin(turn)
        result = in_cuts(Attention(isa, config, TensorType.F32), tokens, [519, 1])
        np.testing.assert_allclose(result[519], tokens.v[position], rtol=1e-5, atol=1e-6)


# --- the layout -------------------------------------------------------------------------------


def test_a_q8_0_cache_holds_what_the_format_says() -> None:
    """Every number of the layout, stated slowly, and the rounding of ``quants``."""
    config = SHAPES["groups of 3, heads of 48"]
    tokens = Tokens(config, 40)
    attention = Attention(target.chosen(), config, TensorType.Q8_0)
    in_cuts(attention, tokens, [40])
    stored = attention.memory.blocks.reshape(-1, 2, 2, 2, 1088)  # blocks, k and v, heads, columns
    blocks = chunk(0, 40).blocks
    keys = np.zeros((40, 2, 64), np.float32)
    values = np.zeros((40, 2, 64), np.float32)
    for position, head, number in np.ndindex(keys.shape):
        block, slot = blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
        for what, out in enumerate((keys, values)):
            columns = stored[block, what, head, number // 32]
            scale = columns[:64].view(np.float16)[slot]
            quants = columns[64:].view(np.int8)
            if what == 0:
                number_of_tile = quants.reshape(2, 32, 16)[slot // 16, number % 32, slot % 16]
            else:
                number_of_tile = quants.reshape(32, 32)[slot, number % 32]
            out[position, head, number] = np.float32(scale) * np.float32(number_of_tile)
    padded = np.zeros_like(values)
    padded[:, :, :48] = tokens.v
    stated = dequantize(TensorType.Q8_0, quantize(TensorType.Q8_0, padded.reshape(80, 64)), 64)
    np.testing.assert_allclose(values, stated.reshape(values.shape), atol=2e-2)
    assert np.mean(values == stated.reshape(values.shape)) > 0.98
    assert not values[:, :, 48:].any()
    assert not keys[:, :, 48:].any()
    lengths = np.linalg.norm(keys, axis=2), np.linalg.norm(tokens.k, axis=2)
    np.testing.assert_allclose(*lengths, rtol=1e-2)  # a rotation keeps them


# --- how work is cut --------------------------------------------------------------------------


def planned(spans: Spans, batch: Batch) -> list[dict[str, int]]:
    """Return the records of a batch's spans."""
    n = spans.plan(batch)
    words = spans._records.words[:n].tolist()
    return [dict(zip(SPAN.integers, row, strict=True)) for row in words]


def spans_for(threads: int, **overrides: Any) -> Spans:
    return Spans(tiny_config(**overrides), 16, 512, MAX_SEQ_LEN, threads)


def test_a_prompt_is_cut_into_tiles_and_the_costly_ones_come_first() -> None:
    spans = planned(spans_for(1, n_heads=8), Batch((chunk(0, 300), chunk(255, 256, 1))))
    assert sorted((s["token"], s["n_tokens"]) for s in spans) == [
        *((12 * i, 12) for i in range(25)), (300, 1)
    ]  # fmt: skip
    costs = [s["n_tokens"] * s["n_parts"] for s in spans]
    assert costs == sorted(costs, reverse=True)
    assert {s["n_spans"] for s in spans} == {1}
    assert not any(s["stores"] for s in spans)


def test_a_short_context_is_never_shared() -> None:
    (span,) = planned(spans_for(64), Batch((chunk(255, 256),)))
    assert (span["first_part"], span["last_part"], span["partials"]) == (0, 1, 0)
    assert span["stores"] == 1


def test_a_long_context_is_shared_by_threads_that_would_go_idle() -> None:
    batch = Batch((chunk(767, 768),))
    assert len(planned(spans_for(1, n_kv_heads=4), batch)) == 1
    first, second = sorted(
        planned(spans_for(2, n_kv_heads=4), batch), key=lambda s: s["first_part"]
    )
    assert (first["first_part"], first["last_part"]) == (0, 1)
    assert (second["first_part"], second["last_part"]) == (1, 3)
    assert (first["stores"], second["stores"]) == (0, 1)
    assert first["partials"] == second["partials"] != 0
    assert first["finished"] == second["finished"] != 0
    assert first["n_spans"] == second["n_spans"] == 2
    assert len(planned(spans_for(64, n_kv_heads=4), batch)) == 3


def test_tiles_share_no_memory() -> None:
    spans = spans_for(8, n_kv_heads=1, n_heads=4)
    batch = Batch((chunk(600, 601), chunk(700, 701, 1), chunk(10, 11, 2)))
    shared = {s["partials"] for s in planned(spans, batch)} - {0}
    assert len(shared) == 2
    low, high = sorted(shared)
    assert high - low == 3 * 4 * spans.row_bytes
    partials = spans._partials
    assert high + 3 * 4 * spans.row_bytes <= partials.ctypes.data + partials.nbytes


def test_a_group_larger_than_a_tile_is_one_tile_a_token() -> None:
    tiles = tiles_of(Batch((chunk(5, 7),)), group=64)
    assert [(t.token, t.position, t.n_tokens) for t in tiles] == [(0, 5, 1), (1, 6, 1)]
