"""One forward pass as one function that every thread runs from the embedding to the logits.

Phases that depend on each other are apart by barriers; between two of them, matrix products
are handed out in chunks from a shared counter.  With a single token every thread normalises
and quantises for itself, which costs less than meeting; with several, tokens are dealt out.
"""

from __future__ import annotations

from pyrllama.cpu.activations import prepare, quantise_blocks
from pyrllama.cpu.barrier import barrier, take
from pyrllama.cpu.kernel import View, call, inline, kernel, part, view
from pyrllama.cpu.norm import rms_norm, swiglu
from pyrllama.cpu.records import (
    ACTIVATIONS,
    BYTES,
    COUNTERS_A_LAYER,
    LAYER,
    LINE,
    MATRIX,
    SPAN,
    STEP,
    TILED_ROWS,
    TILES,
)
from pyrllama.cpu.simd import load_i64
from pyrllama.cpu.squares import add_squares

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)
Layer = view(LAYER)
Span = view(SPAN)
Step = view(STEP)

LAYER_BYTES, SPAN_BYTES = LAYER.n_bytes, SPAN.n_bytes


@inline
def chunk_of(n_groups: int, n_threads: int) -> int:
    """Return how many groups a thread takes at a time: by fours, and for some eight rounds."""
    return max(n_groups // (32 * n_threads) * 4, 4)


@inline
def multiply_groups(
    s: View, matrix: int, activations: int, row: int, n_rows: int,
    out: int, out_stride: int, first: int, last: int, accumulate: int, worker: int,
) -> None:  # fmt: skip
    """Multiply groups of a matrix with one row, several, or enough to fill matrix tiles."""
    m = Matrix(matrix)
    panel = s.panels + worker * s.panels_stride
    if n_rows == 1:
        call(m.matvec, matrix, activations, row, out, first, last, accumulate)
    elif tiled(m, n_rows):
        call(
            m.tile_matmul, matrix, activations, n_rows, out, out_stride, first, last,
            accumulate, panel,
        )  # fmt: skip
    else:
        call(
            m.matmul, matrix, activations, n_rows, out, out_stride, first, last,
            accumulate, panel,
        )  # fmt: skip


@inline
def tiled(m: View, n_rows: int) -> bool:
    """Whether a product of so many rows goes through matrix tiles."""
    return m.tile_matmul != 0 and n_rows >= TILED_ROWS


@inline
def form_for(matrix: int, n_rows: int) -> int:
    """Return the form of activations that a product wants, as a bit."""
    m = Matrix(matrix)
    form: int = m.form
    return TILES if tiled(m, n_rows) else form


@part
def multiply(
    s: View, matrix: int, activations: int, row: int, n_rows: int,
    out: int, out_stride: int, counter: int, worker: int, accumulate: int,
) -> None:  # fmt: skip
    """Do this thread's share of a matrix product."""
    m = Matrix(matrix)
    chunk = chunk_of(m.n_groups, s.n_threads)
    g = take(counter, chunk)
    while g < m.n_groups:
        last = min(g + chunk, m.n_groups)
        multiply_groups(
            s, matrix, activations, row, n_rows, out, out_stride, g, last, accumulate, worker
        )
        g = take(counter, chunk)


@part
def embed(s: View, worker: int) -> None:
    """Unpack the embeddings of this thread's tokens into the residual stream."""
    embedding = Matrix(s.embedding)
    for t in range(worker, s.n_tokens, s.n_threads):
        token = load_i64(s.tokens + 8 * t)
        call(embedding.row, s.embedding, token, s.x + t * s.x_stride)


@part
def normalise_one(s: View, source: int, weight: int, forms: int, worker: int) -> None:
    """Normalise a single token's row as this thread's own row of activations."""
    a = Activations(s.normed)
    rms_norm(source, weight, a.x + worker * a.x_stride, s.dim, s.norm_eps)
    if forms & BYTES:
        quantise_blocks(s.normed, worker, worker, 0, a.n_cols // 32)


@part
def normalise_all(s: View, weight: int, forms: int, worker: int) -> int:
    """Normalise every token's row; return the row at which this thread's products begin."""
    if s.n_tokens == 1:
        normalise_one(s, s.x, weight, forms, worker)
        return worker
    a = Activations(s.normed)
    for t in range(worker, s.n_tokens, s.n_threads):
        rms_norm(s.x + t * s.x_stride, weight, a.x + t * a.x_stride, s.dim, s.norm_eps)
        prepare(s.normed, t, forms, 0, a.n_cols // 32)
    barrier(s.team, s.n_threads)
    return 0


@part
def attention(step: int, s: View, layer: View, index: int, counters: int, worker: int) -> None:
    """Add the attention of a layer to the residual stream."""
    n, threads = s.n_tokens, s.n_threads
    forms = form_for(layer.attn_q, n) | form_for(layer.attn_k, n) | form_for(layer.attn_v, n)
    row = normalise_all(s, layer.attn_norm, forms, worker)
    add_squares(s.normed, row, n, layer.attn_squares, worker, threads)
    multiply(s, layer.attn_q, s.normed, row, n, s.q, s.q_stride, counters, worker, 0)
    multiply(s, layer.attn_k, s.normed, row, n, s.k, s.kv_stride, counters + LINE, worker, 0)
    multiply(s, layer.attn_v, s.normed, row, n, s.v, s.kv_stride, counters + 2 * LINE, worker, 0)
    barrier(s.team, threads)
    attend_all(step, s, index, counters + 6 * LINE, worker)
    barrier(s.team, threads)
    add_squares(s.attended, 0, n, layer.attended_squares, worker, threads)
    row = prepare_attended(s, form_for(layer.attn_output, n), worker)
    counter = counters + 3 * LINE
    multiply(s, layer.attn_output, s.attended, row, n, s.x, s.x_stride, counter, worker, 1)
    barrier(s.team, threads)


@part
def attend_all(step: int, s: View, index: int, counter: int, worker: int) -> None:
    """Put the new keys and values into the cache and attend, span by span and head by head.

    Where no token attends to another one of the batch, whoever takes the span that holds its
    position stores its key and value, and no barrier is needed between.
    """
    work = s.work + worker * s.work_stride
    if s.stored_first:
        for item in range(worker, s.n_tokens * s.n_kv_heads, s.n_threads):
            call(s.store, step, index, item // s.n_kv_heads, item % s.n_kv_heads, work)
        barrier(s.team, s.n_threads)
    n_items = s.n_spans * s.n_kv_heads
    item = take(counter, 1)
    while item < n_items:
        span, head = s.spans + item // s.n_kv_heads * SPAN_BYTES, item % s.n_kv_heads
        if Span(span).stores:
            call(s.store, step, index, Span(span).token, head, work)
        call(s.attend, step, index, span, head, work)
        item = take(counter, 1)


@part
def prepare_attended(s: View, form: int, worker: int) -> int:
    """Bring the attention's output into a form; return the row at which products begin."""
    n_blocks = Activations(s.attended).n_cols // 32
    if s.n_tokens == 1:
        if form != BYTES:
            return 0
        quantise_blocks(s.attended, 0, worker, 0, n_blocks)
        return worker
    for t in range(worker, s.n_tokens, s.n_threads):
        prepare(s.attended, t, form, 0, n_blocks)
    barrier(s.team, s.n_threads)
    return 0


@part
def feed_forward(s: View, layer: View, counters: int, worker: int) -> None:
    """Add the feed-forward network of a layer to the residual stream."""
    n, stride = s.n_tokens, s.ffn_stride
    gate, up, normed = layer.ffn_gate, layer.ffn_up, s.normed
    forms = form_for(gate, n) | form_for(up, n)
    row = normalise_all(s, layer.ffn_norm, forms, worker)
    add_squares(s.normed, row, n, layer.ffn_squares, worker, s.n_threads)
    form = form_for(layer.ffn_down, n)
    n_groups = Matrix(gate).n_groups
    chunk = chunk_of(n_groups, s.n_threads)
    g = take(counters, chunk)
    while g < n_groups:
        last = min(g + chunk, n_groups)
        multiply_groups(s, gate, normed, row, n, s.gate, stride, g, last, 0, worker)
        multiply_groups(s, up, normed, row, n, s.up, stride, g, last, 0, worker)
        activate(s, g, last, form)
        g = take(counters, chunk)
    barrier(s.team, s.n_threads)
    add_squares(s.hidden, 0, n, layer.hidden_squares, worker, s.n_threads)
    multiply(s, layer.ffn_down, s.hidden, 0, n, s.x, s.x_stride, counters + LINE, worker, 1)
    barrier(s.team, s.n_threads)


@part
def activate(s: View, first: int, last: int, form: int) -> None:
    """Apply SwiGLU to groups of the FFN's rows, and bring them into a form while at hand."""
    a = Activations(s.hidden)
    # Chunks are even, so only the very last group can be half a block.
    first_block, last_block = first // 2, (last + 1) // 2
    for t in range(s.n_tokens):
        start = t * s.ffn_stride + 64 * first
        swiglu(s.gate + start, s.up + start, a.x + t * a.x_stride + 64 * first, 16 * (last - first))
        if s.n_tokens > 1:
            prepare(s.hidden, t, form, first_block, last_block)
        elif form == BYTES:
            quantise_blocks(s.hidden, t, t, first_block, last_block)


@part
def logits(s: View, counters: int, worker: int) -> None:
    """Write the logits of the tokens that want them."""
    a, n = Activations(s.normed), s.n_outputs
    if n == 0:
        return
    form = form_for(s.output, n)
    for o in range(worker, n, s.n_threads):
        source = s.x + load_i64(s.outputs + 8 * o) * s.x_stride
        if n == 1:
            normalise_one(s, source, s.output_norm, form, 0)
        else:
            rms_norm(source, s.output_norm, a.x + o * a.x_stride, s.dim, s.norm_eps)
            prepare(s.normed, o, form, 0, a.n_cols // 32)
    barrier(s.team, s.n_threads)
    add_squares(s.normed, 0, n, s.output_squares, worker, s.n_threads)
    multiply(s, s.output, s.normed, 0, n, s.logits, s.logits_stride, counters, worker, 0)


@kernel
def forward(step: int, worker: int) -> None:
    """Run a batch through the model; ``counters`` must be zero when it begins."""
    s = Step(step)
    embed(s, worker)
    barrier(s.team, s.n_threads)
    counters = s.counters
    for index in range(s.n_layers):
        layer = Layer(s.layers + index * LAYER_BYTES)
        attention(step, s, layer, index, counters, worker)
        feed_forward(s, layer, counters + 4 * LINE, worker)
        counters += COUNTERS_A_LAYER * LINE
    logits(s, counters, worker)
