"""The experts of a feed-forward network, in a step: who takes which token, and what they add.

A single token goes through the experts that it chose one after the other, and no other one's
weights are read.  The tokens of a batch are sorted by expert first: each that has any takes
them all together, so that its weights are read once.  A token's results are added in the order
of its own experts, the most probable first, so that it has the same bits alone and in a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrllama.cpu.activations import prepare, quantise
from pyrllama.cpu.barrier import barrier, take
from pyrllama.cpu.expert_squares import add_hidden, add_inputs, add_inputs_of_one
from pyrllama.cpu.kernel import View, inline, part, view
from pyrllama.cpu.norm import exponential, swiglu
from pyrllama.cpu.products import chunk_of, form_for, multiply_groups, tiled, whole_blocks
from pyrllama.cpu.records import (
    ACTIVATIONS,
    LINE,
    MATRIX,
    MIXTURE,
    ROWS_AT_ONCE,
    SUMS,
    TILE_ROWS,
)
from pyrllama.cpu.simd import (
    keep_first,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32,
    maximum,
    splat_f32,
    store,
    sum_f32,
)
from pyrllama.cpu.sixes import prepare_rows

Matrix = view(MATRIX)
Mixture = view(MIXTURE)
Activations = view(ACTIVATIONS)

MATRIX_BYTES, ACTIVATIONS_BYTES = MATRIX.n_bytes, ACTIVATIONS.n_bytes
X, Q, SCALES = (ACTIVATIONS.offset(name) for name in ("x", "q", "scales"))
SUMS_PLACE, SCALED_SUMS_PLACE = (ACTIVATIONS.offset(name) for name in ("sums", "scaled_sums"))
FLOATS_PLACE, BYTES_PLACE, TILES_PLACE = (
    ACTIVATIONS.offset(name) for name in ("floats", "bytes", "tiles")
)
WIDE_PLACE = ACTIVATIONS.offset("wide")
N_ACTIVE = MIXTURE.offset("n_active")

f32 = np.float32
ZERO: Any = f32(0.0)
LOWEST: Any = f32(-1e30)
TAKEN: Any = f32(-1.0)
"""Stands for the probability of an expert that was chosen already."""


# --- who takes which token --------------------------------------------------------------------


@part
def choose(m: View, token: int, row: int) -> None:
    """Write the experts of a token, the most probable first, and their weights to ``row``."""
    p = m.probabilities + row * m.logits_stride
    total = softmax_row(m.logits + token * m.logits_stride, p, m.n_experts)
    ids, weights = m.chosen + 8 * row * m.n_used, m.weights + 4 * row * m.n_used
    chosen_total = ZERO
    for slot in range(m.n_used):
        best = 0
        for e in range(1, m.n_experts):
            if load_f32(p + 4 * e) > load_f32(p + 4 * best):
                best = e
        store(ids + 8 * slot, best)
        store(weights + 4 * slot, load_f32(p + 4 * best))
        chosen_total += load_f32(p + 4 * best)
        store(p + 4 * best, TAKEN)
    if m.normalised:
        total = chosen_total
    for slot in range(m.n_used):
        store(weights + 4 * slot, load_f32(weights + 4 * slot) / total)


@inline
def softmax_row(logits: int, out: int, n: int) -> float:
    """Write the exponentials of ``n`` logits, less the greatest one, and return their sum."""
    greatest = splat_f32(LOWEST)
    for i in range(0, n, 16):
        greatest = maximum(greatest, keep_first(load_f32x16(logits + 4 * i), n - i, LOWEST))
    peak = max_f32(greatest)
    total = splat_f32(0.0)
    for i in range(0, n, 16):
        e = keep_first(exponential(load_f32x16(logits + 4 * i) - peak), n - i, ZERO)
        store(out + 4 * i, e)
        total = total + e
    result: float = sum_f32(total)
    return result


@part
def sort_by_expert(s: View, layer: View, m: View) -> None:
    """Give every token a place among those of each of its experts; one thread does it."""
    for e in range(m.n_experts):
        store(m.counts + 8 * e, 0)
        store(m.filled + 8 * e, 0)
    n_pairs = s.n_tokens * m.n_used
    for pair in range(n_pairs):
        count = m.counts + 8 * load_i64(m.chosen + 8 * pair)
        store(count, load_i64(count) + 1)
    allot_places(s, layer, m)
    for pair in range(n_pairs):
        e = load_i64(m.chosen + 8 * pair)
        filled = load_i64(m.filled + 8 * e)
        place = load_i64(m.starts + 8 * e) + filled
        store(m.filled + 8 * e, filled + 1)
        store(m.places + 8 * pair, place)
        store(m.row_weights + 4 * place, load_f32(m.weights + 4 * pair))


@inline
def allot_places(s: View, layer: View, m: View) -> None:
    """Allot rows to the experts that have tokens, apart by what products may write behind them."""
    row = tile_row = n_active = 0
    for e in range(m.n_experts):
        n = load_i64(m.counts + 8 * e)
        if n == 0:
            continue
        store(m.active + 8 * n_active, e)
        n_active += 1
        store(m.starts + 8 * e, row)
        point_both_to(m.inputs, m.expert_inputs + e * ACTIVATIONS_BYTES, row, tile_row)
        point_both_to(s.hidden, m.expert_hidden + e * ACTIVATIONS_BYTES, row, tile_row)
        if in_tiles(layer, n):
            n = (n + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
            tile_row += n
        row += (n + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE * ROWS_AT_ONCE
    store(s.mixture + N_ACTIVE, n_active)


@inline
def in_tiles(layer: View, n_rows: int) -> bool:
    """Whether any product of an expert with so many rows goes through matrix tiles."""
    gate, up, down = Matrix(layer.ffn_gate), Matrix(layer.ffn_up), Matrix(layer.ffn_down)
    return tiled(gate, n_rows) or tiled(up, n_rows) or tiled(down, n_rows)


@inline
def point_to(pool: int, record: int, row: int, tile_row: int) -> None:
    """Make a record of activations that of the rows of a pool from ``row`` on, a multiple of six.

    Tiles are counted apart, in multiples of 32 rows.
    """
    a = Activations(pool)
    store(record + X, a.x + row * a.x_stride)
    store(record + Q, a.q + row * a.q_stride)
    store(record + SCALES, a.scales + row * a.block_stride)
    store(record + SUMS_PLACE, a.sums + row * SUMS * a.block_stride)
    store(record + SCALED_SUMS_PLACE, a.scaled_sums + row * SUMS * a.block_stride)
    store(record + FLOATS_PLACE, a.floats + row // ROWS_AT_ONCE * a.floats_stride)
    store(record + BYTES_PLACE, a.bytes + row // ROWS_AT_ONCE * a.bytes_stride)
    store(record + TILES_PLACE, a.tiles + 2 * tile_row * a.n_cols)


@inline
def point_both_to(pool: int, record: int, row: int, tile_row: int) -> None:
    """Make a record that of some rows of a pool, and so the one of their wide form."""
    point_to(pool, record, row, tile_row)
    point_to(load_i64(pool + WIDE_PLACE), load_i64(record + WIDE_PLACE), row, tile_row)


@part
def gather(s: View, layer: View, m: View, worker: int) -> None:
    """Copy this thread's tokens to their places, in the form that their experts want."""
    source, pool = Activations(s.normed), Activations(m.inputs)
    for t in range(worker, s.n_tokens, s.n_threads):
        x = source.x + t * source.x_stride
        for pair in range(t * m.n_used, (t + 1) * m.n_used):
            e, place = load_i64(m.chosen + 8 * pair), load_i64(m.places + 8 * pair)
            out = pool.x + place * pool.x_stride
            for i in range(0, 4 * pool.n_cols, 64):
                store(out + i, load_f32x16(x + i))
            n, skip = load_i64(m.counts + 8 * e), e * MATRIX_BYTES
            forms = form_for(layer.ffn_gate + skip, n) | form_for(layer.ffn_up + skip, n)
            row = place - load_i64(m.starts + 8 * e)
            prepare(m.expert_inputs + e * ACTIVATIONS_BYTES, row, forms, 0, pool.n_cols // 32)


# --- what they add ----------------------------------------------------------------------------


@inline
def weigh(row: int, n: int, weight: float) -> None:
    """Multiply ``n`` numbers, whole vectors, by a weight."""
    for i in range(0, 4 * n, 64):
        store(row + i, load_f32x16(row + i) * weight)


@inline
def chunks_of_experts(n_experts: int, n_groups: int, n_threads: int) -> int:
    """Return how many groups of one of several experts a thread takes at a time."""
    return min(chunk_of(n_experts * n_groups, n_threads), (n_groups + 3) // 4 * 4)


@part
def single_token(s: View, layer: View, m: View, row: int, counters: int, worker: int) -> None:
    """Add the experts of the only token; every thread has chosen them for itself."""
    ids, weights = m.chosen + 8 * worker * m.n_used, m.weights + 4 * worker * m.n_used
    form = form_for(layer.ffn_down, 1)
    n_groups = Matrix(layer.ffn_gate).n_groups
    chunk = whole_blocks(chunks_of_experts(m.n_used, n_groups, s.n_threads), form)
    n_chunks = (n_groups + chunk - 1) // chunk
    a = Activations(s.hidden)
    item = take(counters, 1)
    while item < m.n_used * n_chunks:
        slot, first = item // n_chunks, item % n_chunks * chunk
        last = min(first + chunk, n_groups)
        e = load_i64(ids + 8 * slot)
        skip = e * MATRIX_BYTES
        gate, up = s.gate + slot * s.ffn_stride, s.up + slot * s.ffn_stride
        multiply_groups(s, layer.ffn_gate + skip, s.normed, row, 1, gate, 0, first, last, 0, worker)
        multiply_groups(s, layer.ffn_up + skip, s.normed, row, 1, up, 0, first, last, 0, worker)
        x, n = a.x + slot * a.x_stride + 64 * first, 16 * (last - first)
        swiglu(gate + 64 * first, up + 64 * first, x, n)
        add_hidden(s, layer, e, a.x + slot * a.x_stride, first, last)
        weigh(x, n, load_f32(weights + 4 * slot))
        quantise(s.hidden, slot, slot, form, first // 2, (last + 1) // 2)
        item = take(counters, 1)
    barrier(s.team, s.n_threads)
    n_groups = Matrix(layer.ffn_down).n_groups
    chunk = chunk_of(n_groups, s.n_threads)
    g = take(counters + LINE, chunk)
    while g < n_groups:
        last = min(g + chunk, n_groups)
        for slot in range(m.n_used):
            down = layer.ffn_down + load_i64(ids + 8 * slot) * MATRIX_BYTES
            multiply_groups(s, down, s.hidden, slot, 1, s.x, 0, g, last, 1, worker)
        g = take(counters + LINE, chunk)
    barrier(s.team, s.n_threads)


@part
def inner_products(s: View, layer: View, m: View, counter: int, worker: int) -> None:
    """Do this thread's share of gate, up and SwiGLU for the tokens of all experts."""
    n_groups = Matrix(layer.ffn_gate).n_groups
    chunk = chunks_of_experts(m.n_active, n_groups, s.n_threads)
    chunk = whole_blocks(chunk, Matrix(layer.ffn_down).form)
    n_chunks = (n_groups + chunk - 1) // chunk
    item = take(counter, 1)
    while item < m.n_active * n_chunks:
        e, first = load_i64(m.active + 8 * (item // n_chunks)), item % n_chunks * chunk
        last, n = min(first + chunk, n_groups), load_i64(m.counts + 8 * e)
        start, skip = load_i64(m.starts + 8 * e), e * MATRIX_BYTES
        inputs = m.expert_inputs + e * ACTIVATIONS_BYTES
        gate, up = s.gate + start * s.ffn_stride, s.up + start * s.ffn_stride
        multiply_groups(
            s, layer.ffn_gate + skip, inputs, 0, n, gate, s.ffn_stride, first, last, 0, worker
        )
        multiply_groups(
            s, layer.ffn_up + skip, inputs, 0, n, up, s.ffn_stride, first, last, 0, worker
        )
        hidden = m.expert_hidden + e * ACTIVATIONS_BYTES
        a, form, width = Activations(hidden), form_for(layer.ffn_down + skip, n), last - first
        for r in range(n):
            x, place = a.x + r * a.x_stride + 64 * first, r * s.ffn_stride + 64 * first
            swiglu(gate + place, up + place, x, 16 * width)
            add_hidden(s, layer, e, a.x + r * a.x_stride, first, last)
            weigh(x, 16 * width, load_f32(m.row_weights + 4 * (start + r)))
        prepare_rows(hidden, n, form, first // 2, (last + 1) // 2)
        item = take(counter, 1)


@part
def outer_products(s: View, layer: View, m: View, counter: int, worker: int) -> None:
    """Do this thread's share of ``ffn_down`` for the tokens of all experts."""
    n_groups = Matrix(layer.ffn_down).n_groups
    chunk = chunks_of_experts(m.n_active, n_groups, s.n_threads)
    n_chunks = (n_groups + chunk - 1) // chunk
    item = take(counter, 1)
    while item < m.n_active * n_chunks:
        e, first = load_i64(m.active + 8 * (item // n_chunks)), item % n_chunks * chunk
        multiply_groups(
            s, layer.ffn_down + e * MATRIX_BYTES, m.expert_hidden + e * ACTIVATIONS_BYTES, 0,
            load_i64(m.counts + 8 * e),
            m.outputs + load_i64(m.starts + 8 * e) * m.outputs_stride, m.outputs_stride,
            first, min(first + chunk, n_groups), 0, worker,
        )  # fmt: skip
        item = take(counter, 1)


@part
def add_outputs(s: View, m: View, worker: int) -> None:
    """Add the results of its experts to each of this thread's tokens."""
    for t in range(worker, s.n_tokens, s.n_threads):
        x = s.x + t * s.x_stride
        for pair in range(t * m.n_used, (t + 1) * m.n_used):
            out = m.outputs + load_i64(m.places + 8 * pair) * m.outputs_stride
            for i in range(0, 4 * s.dim, 64):
                store(x + i, load_f32x16(x + i) + load_f32x16(out + i))


@part
def mix_experts(s: View, layer: View, row: int, counters: int, worker: int) -> None:
    """Add the experts of all tokens to the residual stream, the router's logits being there."""
    m, threads = Mixture(s.mixture), s.n_threads
    if s.n_tokens == 1:
        choose(m, 0, worker)
        add_inputs_of_one(s, layer, m, row, worker)
        single_token(s, layer, m, row, counters, worker)
        return
    for t in range(worker, s.n_tokens, threads):
        choose(m, t, t)
    barrier(s.team, threads)
    if worker == 0:
        sort_by_expert(s, layer, m)
    barrier(s.team, threads)
    gather(s, layer, m, worker)
    barrier(s.team, threads)
    add_inputs(s, layer, m, worker)
    inner_products(s, layer, m, counters, worker)
    barrier(s.team, threads)
    outer_products(s, layer, m, counters + LINE, worker)
    barrier(s.team, threads)
    add_outputs(s, m, worker)
    barrier(s.team, threads)
