"""One forward pass as one function that every thread runs from the embedding to the logits.

Phases that depend on each other are apart by barriers; between two of them, matrix products
are handed out in chunks from a shared counter (``products.py``).  With a single token every
thread normalises and quantises for itself, which costs less than meeting; with several, tokens
are dealt out.
"""

from __future__ import annotations

from pyrllama.cpu.activations import prepare, quantise
from pyrllama.cpu.barrier import barrier, take
from pyrllama.cpu.experts import mix_experts
from pyrllama.cpu.kernel import View, call, inline, kernel, part, view
from pyrllama.cpu.logit_runs import sum_up_rows, sum_up_runs
from pyrllama.cpu.norm import rms_norm, swiglu
from pyrllama.cpu.products import (
    begin_of,
    form_for,
    most_at_once,
    multiply,
    multiply_groups,
    share_of,
    whole_blocks,
)
from pyrllama.cpu.records import (
    ACTIVATIONS,
    COUNTERS_A_LAYER,
    FLOATS,
    LAYER,
    LINE,
    MATRIX,
    MIXTURE,
    ROWS_AT_ONCE,
    SPAN,
    STEP,
)
from pyrllama.cpu.simd import load_i64
from pyrllama.cpu.sixes import prepare_rows, prepare_six
from pyrllama.cpu.squares import add_squares

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)
Layer = view(LAYER)
Span = view(SPAN)
Mixture = view(MIXTURE)
Step = view(STEP)

LAYER_BYTES, SPAN_BYTES = LAYER.n_bytes, SPAN.n_bytes


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
    quantise(s.normed, worker, worker, forms, 0, a.n_cols // 32)


@inline
def rows_at_once(n_rows: int, n_threads: int) -> int:
    """Return how many rows a thread prepares in turn: six, as they share cache lines then.

    Where there are too few for all threads, each takes every so many.
    """
    return ROWS_AT_ONCE if n_rows >= ROWS_AT_ONCE * n_threads else 1


@inline
def prepare_some(
    activations: int, first: int, at_once: int, n_rows: int, forms: int, n_blocks: int
) -> None:
    """Bring as many rows as a thread prepares in turn into the forms asked for."""
    if at_once == 1:
        prepare(activations, first, forms, 0, n_blocks)
    else:
        prepare_six(activations, first, n_rows, forms, 0, n_blocks)


@part
def normalise_all(s: View, weight: int, forms: int, worker: int) -> int:
    """Normalise every token's row; return the row at which this thread's products begin."""
    if s.n_tokens == 1:
        normalise_one(s, s.x, weight, forms, worker)
        return worker
    a = Activations(s.normed)
    at_once = rows_at_once(s.n_tokens, s.n_threads)
    for first in range(at_once * worker, s.n_tokens, at_once * s.n_threads):
        for t in range(first, min(first + at_once, s.n_tokens)):
            rms_norm(s.x + t * s.x_stride, weight, a.x + t * a.x_stride, s.dim, s.norm_eps)
        prepare_some(s.normed, first, at_once, s.n_tokens, forms, a.n_cols // 32)
    barrier(s.team, s.n_threads)
    return 0


@part
def attention(step: int, s: View, layer: View, index: int, counters: int, worker: int) -> None:
    """Add the attention of a layer to the residual stream."""
    n, threads = s.n_tokens, s.n_threads
    forms = form_for(layer.attn_q, n) | form_for(layer.attn_k, n) | form_for(layer.attn_v, n)
    row = normalise_all(s, layer.attn_norm, forms, worker)
    add_squares(s.normed, row, n, layer.attn_squares, worker, threads)
    multiply(s, layer.attn_q, s.normed, row, n, s.q, s.q_stride, counters, worker, 0, layer.q_bias)
    multiply(
        s, layer.attn_k, s.normed, row, n, s.k, s.kv_stride, counters + LINE, worker, 0,
        layer.k_bias,
    )  # fmt: skip
    multiply(
        s, layer.attn_v, s.normed, row, n, s.v, s.kv_stride, counters + 2 * LINE, worker, 0,
        layer.v_bias,
    )  # fmt: skip
    barrier(s.team, threads)
    attend_all(step, s, index, counters + 6 * LINE, worker)
    barrier(s.team, threads)
    add_squares(s.attended, 0, n, layer.attended_squares, worker, threads)
    row = prepare_attended(s, form_for(layer.attn_output, n), worker)
    counter = counters + 3 * LINE
    multiply(s, layer.attn_output, s.attended, row, n, s.x, s.x_stride, counter, worker, 1, 0)
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


@inline
def quantise_own(activations: int, form: int, worker: int) -> int:
    """Quantise the only row as this thread's own; return the row at which products begin."""
    quantise(activations, 0, worker, form, 0, Activations(activations).n_cols // 32)
    return 0 if form == FLOATS else worker


@part
def prepare_attended(s: View, form: int, worker: int) -> int:
    """Bring the attention's output into a form; return the row at which products begin."""
    if s.n_tokens == 1:
        return quantise_own(s.attended, form, worker)
    n_blocks = Activations(s.attended).n_cols // 32
    at_once = rows_at_once(s.n_tokens, s.n_threads)
    for first in range(at_once * worker, s.n_tokens, at_once * s.n_threads):
        prepare_some(s.attended, first, at_once, s.n_tokens, form, n_blocks)
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
    n_groups, threads = Matrix(gate).n_groups, s.n_threads
    least = 4 if n == 1 else whole_blocks(4, form)
    most = most_at_once(n_groups, n, threads)
    nth = take(counters, 1)
    g = begin_of(nth, 0, n_groups, most, threads, least)
    while g < n_groups:
        last = min(g + share_of(n_groups - g, most, threads, least), n_groups)
        multiply_groups(s, gate, normed, row, n, s.gate, stride, g, last, 0, worker)
        multiply_groups(s, up, normed, row, n, s.up, stride, g, last, 0, worker)
        activate(s, g, last, form)
        taken, nth = nth, take(counters, 1)
        g = begin_of(nth - taken, g, n_groups, most, threads, least)
    barrier(s.team, s.n_threads)
    add_squares(s.hidden, 0, n, layer.hidden_squares, worker, s.n_threads)
    row = quantise_own(s.hidden, form, worker) if n == 1 else 0
    multiply(s, layer.ffn_down, s.hidden, row, n, s.x, s.x_stride, counters + LINE, worker, 1, 0)
    barrier(s.team, s.n_threads)


@part
def mixture(s: View, layer: View, counters: int, worker: int) -> None:
    """Add the experts that each token chooses to the residual stream."""
    n, m = s.n_tokens, Mixture(s.mixture)
    forms = form_for(layer.router, n)
    if n == 1:  # experts take rows of their own otherwise
        forms |= form_for(layer.ffn_gate, 1) | form_for(layer.ffn_up, 1)
    row = normalise_all(s, layer.ffn_norm, forms, worker)
    add_squares(s.normed, row, n, layer.ffn_squares, worker, s.n_threads)
    counter = counters + 3 * LINE
    multiply(s, layer.router, s.normed, row, n, m.logits, m.logits_stride, counter, worker, 0, 0)
    barrier(s.team, s.n_threads)
    mix_experts(s, layer, row, counters, worker)


@part
def activate(s: View, first: int, last: int, form: int) -> None:
    """Apply SwiGLU to groups of the FFN's rows; bring several into a form while at hand.

    A single row is left to ``quantise_own``, so that threads may share it out in small pieces.
    """
    a = Activations(s.hidden)
    for t in range(s.n_tokens):
        start = t * s.ffn_stride + 64 * first
        swiglu(s.gate + start, s.up + start, a.x + t * a.x_stride + 64 * first, 16 * (last - first))
    if s.n_tokens > 1:
        # Shares are even, so only the very last group can be half a block.
        prepare_rows(s.hidden, s.n_tokens, form, first // 2, (last + 1) // 2)


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
    multiply(s, s.output, s.normed, 0, n, s.logits, s.logits_stride, counters, worker, 0, 0)
    if s.top_wanted:
        barrier(s.team, s.n_threads)
        sum_up_runs(s, worker)
        barrier(s.team, s.n_threads)
        sum_up_rows(s, worker)


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
        if s.mixture:
            mixture(s, layer, counters + 4 * LINE, worker)
        else:
            feed_forward(s, layer, counters + 4 * LINE, worker)
        counters += COUNTERS_A_LAYER * LINE
    logits(s, counters, worker)
