"""Attention over the KV cache: a tile of query rows against its blocks, part after part.

The rows of a tile share a KV head: the query heads of its group, for one token or for several
that follow each other.  Positions are cut into parts of 256, and for each part a tile takes

1. the scores of its rows, a block of 32 keys at a time;
2. their exponentials, less the row's greatest score in the part;
3. the values that these weigh, again block by block;
4. and merges the result with that of the parts before: an online softmax (Milakov and
   Gimelshein, 2018) that corrects its running sums once a part, not once a block.

Where attention has a window, it begins with the block that holds the first position that the
tile sees.  What another row of the tile sees and this one does not weighs exactly zero.

A row takes the same operations in the same order whatever its tile, and parts are cut by the
position alone; so neither the cut of a prompt, nor the batch, nor the number of threads that
share a long context changes a bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.cpu.attention_blocks import NARROW, WIDE, Shapes, block_products
from pyrllama.cpu.attention_rows import clear, copy_row, merge, softmax, write_row
from pyrllama.cpu.barrier import atomic_add, atomic_store
from pyrllama.cpu.instructions import prefetch
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, part, view
from pyrllama.cpu.kv_cache import (
    Q8_BLOCK_BYTES,
    as_it_is,
    layer_of,
    load_half,
    rotate_head,
    unpack_half,
    unpack_q8_0_keys,
    unpack_q8_0_values,
)
from pyrllama.cpu.records import ACTIVATIONS, PART_TOKENS, SCORES_STEP, SPAN, STEP
from pyrllama.cpu.simd import load_f32x16, load_i64, square_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.vectors import Lanes

    Unpacker = Callable[[int, int, int, int], int]

Step = view(STEP)
Span = view(SPAN)
Activations = view(ACTIVATIONS)

f32 = np.float32


# --- a tile -----------------------------------------------------------------------------------


@inline
def rotate_queries(s: View, layer: View, w: View, head: int, group: int, q: int) -> None:
    """Write the rotated queries of a tile's rows, times the scale of scores."""
    scale = f32(1.0) / square_root(f32(s.head_dim))
    for t in range(w.token, w.token + w.n_tokens):
        position = load_i64(s.positions + 8 * t)
        source = s.q + t * s.q_stride + 4 * head * group * s.head_dim
        for h in range(group):
            rotate_head(s, source + 4 * h * s.head_dim, layer.q_norm, position, q, scale)
            q += 4 * s.head_stride


@inline
def rows_before(s: View, position: int, first: int, rows: int, group: int) -> int:
    """Return how many rows of a tile see positions of the part that begins at ``first``.

    The others, whose tokens come later, have left it behind their window.
    """
    seeing: int = min(rows, (first + PART_TOKENS + s.window - 1 - position) * group)
    return seeing


class Format(NamedTuple):
    """How attention reads a type of cache.

    The rows of a few query heads read numbers of ``size`` bytes by ``load``, in place or as
    ``few_keys`` and ``few_values`` unpack them; many rows read float32 that ``many_keys`` and
    ``many_values`` unpack.  These four take a source, a target, the stride and the address of
    what will be read next, which ``fetch`` asks for too, and return the address to read from.
    """

    head_bytes: Callable[[int], int]
    """Bytes of a head's keys in a block, of its stride."""
    size: int
    load: Callable[[int], Lanes]
    fetch: Callable[[int], None]
    few_keys: Unpacker
    few_values: Unpacker
    many_keys: Unpacker
    many_values: Unpacker


def attention_kernel(cache: Format, shapes: Shapes) -> KernelFunction:
    """Return the attention kernel of a type of cache for the registers of a CPU."""
    head_bytes, size, load, fetch, few_keys, few_values, many_keys, many_values = cache
    score_few, add_few = block_products(size, load, fetch, *shapes.few)
    score_many, add_many = block_products(4, load_f32x16, no_fetch, *shapes.many)
    few = 2 * shapes.few[0]

    @inline
    def score(
        q: int, keys: int, following: int, head_dim: int, stride: int, first_row: int, rows: int,
        scores: int, unpacked: int,
    ) -> None:  # fmt: skip
        """Write the scores of a tile's rows with the keys of a block."""
        if rows - first_row <= few:
            b = few_keys(keys, unpacked, stride, following)
            score_few(q, b, following, head_dim, stride, first_row, rows, scores)
        else:
            b = many_keys(keys, unpacked, stride, following)
            score_many(q, b, b, head_dim, stride, first_row, rows, scores)

    @inline
    def add_values(
        weights: int, values: int, following: int, stride: int, first_row: int, rows: int,
        group: int, seen: int, totals: int, step: int, unpacked: int,
    ) -> None:  # fmt: skip
        """Add the weighted values of a block to the totals of a tile's rows."""
        if rows - first_row <= few:
            b = few_values(values, unpacked, stride, following)
            add_few(weights, b, following, stride, first_row, rows, group, seen, totals, step)
        else:
            b = many_values(values, unpacked, stride, following)
            add_many(weights, b, b, stride, first_row, rows, group, seen, totals, step)

    @inline
    def block(s: View, table: int, b: int) -> int:
        """Return where a sequence's block is."""
        place: int = s.cache + load_i64(table + 8 * b) * s.block_bytes
        return place

    @part
    def attend_part(
        s: View, w: View, offset: int, first: int, rows: int, group: int, work: int, result: int,
    ) -> None:  # fmt: skip
        """Write the results of a tile's ``rows`` for the part that begins at position ``first``."""
        stride, step = s.head_stride, 4 * s.head_stride + 64
        q, scores = work, work + 4 * s.query_rows * stride
        unpacked = result + s.query_rows * step
        position = load_i64(s.positions + 8 * w.token)
        table = load_i64(s.tables + 8 * w.token)
        newest = position + w.n_tokens - 1
        oldest = position - s.window + 1
        first_block = max(oldest, first) // BLOCK_TOKENS
        last_block = min(newest, first + PART_TOKENS - 1) // BLOCK_TOKENS
        values = s.n_kv_heads * head_bytes(stride)
        for b in range(first_block, last_block + 1):
            start = b * BLOCK_TOKENS
            keys = block(s, table, b) + offset
            following = block(s, table, min(b + 1, last_block)) + offset
            if b == last_block:
                following = block(s, table, first_block) + offset + values
            score(
                q, keys, following, s.head_dim, stride,
                max(start - position, 0) * group, rows,
                scores + 4 * (start - first), unpacked,
            )  # fmt: skip
        for r in range(max(first - position, 0) * group, rows):
            row = result + r * step
            clear(row, stride)
            unseen = max(oldest + r // group - first, 0)
            count = min(position + r // group + 1 - first, PART_TOKENS)
            softmax(scores + r * SCORES_STEP, unseen, count, row + 4 * stride)
        for b in range(first_block, last_block + 1):
            start = b * BLOCK_TOKENS
            place = block(s, table, b) + offset + values
            following = block(s, table, min(b + 1, newest // BLOCK_TOKENS)) + offset
            if b < last_block:
                following += values
            add_values(
                scores + 4 * (start - first), place, following, stride,
                max(start - position, 0) * group, rows, group, position + 1 - start,
                result, step, unpacked,
            )  # fmt: skip

    @kernel
    def attend(step: int, layer: int, span: int, head: int, work: int) -> None:
        """Attend for the rows of a tile over the parts of a span, for one KV head.

        The thread that ends the last span of a tile merges the parts and writes the outcome.
        """
        s, w = Step(step), Span(span)
        group = s.n_heads // s.n_kv_heads
        rows, stride = w.n_tokens * group, s.head_stride
        row_bytes = 4 * stride + 64
        position = load_i64(s.positions + 8 * w.token)
        offset = layer * s.layer_bytes + head * head_bytes(stride)
        state = work + s.query_rows * (4 * stride + SCORES_STEP)
        result = state + s.query_rows * row_bytes
        rotate_queries(s, layer_of(s, layer), w, head, group, work)
        for r in range(rows):
            clear(state + r * row_bytes, stride)
        for p in range(w.first_part, w.last_part):
            first = p * PART_TOKENS
            seeing = rows_before(s, position, first, rows, group)
            attend_part(s, w, offset, first, seeing, group, work, result)
            slot = w.partials + (head * w.n_parts + p) * rows * row_bytes
            for r in range(max(first - position, 0) * group, seeing):
                if w.partials:
                    copy_row(result + r * row_bytes, slot + r * row_bytes, row_bytes)
                else:
                    merge(state + r * row_bytes, result + r * row_bytes, stride)
        if w.partials:
            if atomic_add(w.finished + 8 * head, 1) != w.n_spans - 1:
                return
            atomic_store(w.finished + 8 * head, 0)
            for p in range(max(position - s.window + 1, 0) // PART_TOKENS, w.n_parts):
                slot = w.partials + (head * w.n_parts + p) * rows * row_bytes
                seeing = rows_before(s, position, p * PART_TOKENS, rows, group)
                for r in range(max(p * PART_TOKENS - position, 0) * group, seeing):
                    merge(state + r * row_bytes, slot + r * row_bytes, stride)
        a = Activations(s.attended)
        for r in range(rows):
            out = a.x + (w.token + r // group) * a.x_stride
            out += 4 * (head * group + r % group) * s.head_dim
            write_row(state + r * row_bytes, out, s.head_dim, stride)

    return attend


# --- the types of cache -----------------------------------------------------------------------


@inline
def no_fetch(_p: int) -> None:
    """Ask for nothing."""


@inline
def head_bytes_f32(stride: int) -> int:
    """Return the bytes of a head's keys in a block."""
    return 4 * BLOCK_TOKENS * stride


@inline
def head_bytes_f16(stride: int) -> int:
    """Return the bytes of a head's keys in a block."""
    return 2 * BLOCK_TOKENS * stride


@inline
def head_bytes_q8_0(stride: int) -> int:
    """Return the bytes of a head's keys in a block."""
    return stride // 32 * Q8_BLOCK_BYTES


F32 = Format(head_bytes_f32, 4, load_f32x16, prefetch, *4 * [as_it_is])
F16 = Format(head_bytes_f16, 2, load_half, prefetch, *2 * [as_it_is], *2 * [unpack_half])
Q8_0 = Format(
    head_bytes_q8_0, 4, load_f32x16, no_fetch, *2 * [unpack_q8_0_keys, unpack_q8_0_values]
)

attend_f32, attend_f32_wide = attention_kernel(F32, NARROW), attention_kernel(F32, WIDE)
attend_f16, attend_f16_wide = attention_kernel(F16, NARROW), attention_kernel(F16, WIDE)
attend_q8_0, attend_q8_0_wide = attention_kernel(Q8_0, NARROW), attention_kernel(Q8_0, WIDE)
