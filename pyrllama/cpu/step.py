"""One forward pass as one function that every thread runs from the embedding to the logits.

Phases that depend on each other are apart by barriers; between two of them, matrix products
are handed out in chunks from a shared counter.  With a single token every thread normalises
and quantises for itself, which costs less than meeting; with several, tokens are dealt out.
"""

from __future__ import annotations

from pyrllama.cpu.barrier import barrier, take
from pyrllama.cpu.kernel import View, call, inline, kernel, part, view
from pyrllama.cpu.norm import quantise_blocks, rms_norm, swiglu
from pyrllama.cpu.records import ACTIVATIONS, COUNTERS_A_LAYER, LAYER, LINE, MATRIX, STEP
from pyrllama.cpu.simd import load_i64

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)
Layer = view(LAYER)
Step = view(STEP)

LAYER_BYTES = LAYER.n_bytes


@inline
def chunk_of(n_groups: int, n_threads: int) -> int:
    """Return how many groups a thread takes at a time: by fours, and for some eight rounds."""
    return max(n_groups // (32 * n_threads) * 4, 4)


@part
def multiply(
    matrix: int, activations: int, row: int, n_rows: int,
    out: int, out_stride: int, counter: int, n_threads: int, accumulate: int,
) -> None:  # fmt: skip
    """Do this thread's share of a matrix product."""
    m = Matrix(matrix)
    chunk = chunk_of(m.n_groups, n_threads)
    g = take(counter, chunk)
    while g < m.n_groups:
        last = min(g + chunk, m.n_groups)
        call(m.product, matrix, activations, row, n_rows, out, out_stride, g, last, accumulate)
        g = take(counter, chunk)


@part
def embed(s: View, worker: int) -> None:
    """Unpack the embeddings of this thread's tokens into the residual stream."""
    embedding = Matrix(s.embedding)
    for t in range(worker, s.n_tokens, s.n_threads):
        token = load_i64(s.tokens + 8 * t)
        call(embedding.row, s.embedding, token, s.x + t * s.x_stride)


@part
def normalise(s: View, source: int, row: int, weight: int, quantised: int) -> None:
    """Normalise one row of the residual stream and quantise it where a product wants that."""
    a = Activations(s.normed)
    rms_norm(source, weight, a.x + row * a.x_stride, s.dim, s.norm_eps)
    if quantised:
        quantise_blocks(s.normed, row, row, 0, a.n_cols // 32)


@part
def normalise_all(s: View, weight: int, quantised: int, worker: int) -> int:
    """Normalise every token's row; return the row at which this thread's products begin."""
    if s.n_tokens == 1:
        normalise(s, s.x, worker, weight, quantised)
        return worker
    for t in range(worker, s.n_tokens, s.n_threads):
        normalise(s, s.x + t * s.x_stride, t, weight, quantised)
    barrier(s.team, s.n_threads)
    return 0


@part
def attention(step: int, s: View, layer: View, index: int, counters: int, worker: int) -> None:
    """Add the attention of a layer to the residual stream."""
    q, k, v = Matrix(layer.attn_q), Matrix(layer.attn_k), Matrix(layer.attn_v)
    quantised = q.quantised | k.quantised | v.quantised
    row = normalise_all(s, layer.attn_norm, quantised, worker)
    n, threads = s.n_tokens, s.n_threads
    multiply(layer.attn_q, s.normed, row, n, s.q, s.q_stride, counters, threads, 0)
    multiply(layer.attn_k, s.normed, row, n, s.k, s.kv_stride, counters + LINE, threads, 0)
    multiply(layer.attn_v, s.normed, row, n, s.v, s.kv_stride, counters + 2 * LINE, threads, 0)
    barrier(s.team, threads)
    attend_all(step, s, index, worker)
    barrier(s.team, threads)
    row = quantise_attended(s, worker) if Matrix(layer.attn_output).quantised else 0
    counter = counters + 3 * LINE
    multiply(layer.attn_output, s.attended, row, n, s.x, s.x_stride, counter, threads, 1)
    barrier(s.team, threads)


@part
def attend_all(step: int, s: View, index: int, worker: int) -> None:
    """Put the new keys and values into the cache and attend, KV head by KV head.

    A thread attends for the heads whose keys it stored, so one token needs no barrier between.
    """
    work = s.work + worker * s.work_stride
    items, threads = s.n_tokens * s.n_kv_heads, s.n_threads
    for item in range(worker, items, threads):
        call(s.store, step, index, item // s.n_kv_heads, item % s.n_kv_heads, work)
    if s.n_tokens > 1:
        barrier(s.team, threads)
    group = s.n_heads // s.n_kv_heads
    for item in range(worker, items, threads):
        first = item % s.n_kv_heads * group
        for head in range(first, first + group):
            call(s.attend, step, index, item // s.n_kv_heads, head, work)


@part
def quantise_attended(s: View, worker: int) -> int:
    """Quantise the attention's output; return the row at which this thread's products begin."""
    n_blocks = Activations(s.attended).n_cols // 32
    if s.n_tokens == 1:
        quantise_blocks(s.attended, 0, worker, 0, n_blocks)
        return worker
    for t in range(worker, s.n_tokens, s.n_threads):
        quantise_blocks(s.attended, t, t, 0, n_blocks)
    barrier(s.team, s.n_threads)
    return 0


@part
def feed_forward(s: View, layer: View, counters: int, worker: int) -> None:
    """Add the feed-forward network of a layer to the residual stream."""
    gate, up, down = Matrix(layer.ffn_gate), Matrix(layer.ffn_up), Matrix(layer.ffn_down)
    row = normalise_all(s, layer.ffn_norm, gate.quantised | up.quantised, worker)
    n, stride = s.n_tokens, s.ffn_stride
    chunk = chunk_of(gate.n_groups, s.n_threads)
    g = take(counters, chunk)
    while g < gate.n_groups:
        last = min(g + chunk, gate.n_groups)
        call(gate.product, layer.ffn_gate, s.normed, row, n, s.gate, stride, g, last, 0)
        call(up.product, layer.ffn_up, s.normed, row, n, s.up, stride, g, last, 0)
        activate(s, g, last, down.quantised)
        g = take(counters, chunk)
    barrier(s.team, s.n_threads)
    multiply(layer.ffn_down, s.hidden, 0, n, s.x, s.x_stride, counters + LINE, s.n_threads, 1)
    barrier(s.team, s.n_threads)


@part
def activate(s: View, first: int, last: int, quantised: int) -> None:
    """Apply SwiGLU to groups of the FFN's rows, and quantise them while they are at hand."""
    a = Activations(s.hidden)
    for t in range(s.n_tokens):
        start = t * s.ffn_stride + 64 * first
        swiglu(s.gate + start, s.up + start, a.x + t * a.x_stride + 64 * first, 16 * (last - first))
        if quantised:
            # Chunks are even, so only the very last group can be half a block.
            quantise_blocks(s.hidden, t, t, first // 2, (last + 1) // 2)


@part
def logits(s: View, counters: int, worker: int) -> None:
    """Write the logits of the tokens that want them."""
    output = Matrix(s.output)
    for o in range(worker, s.n_outputs, s.n_threads):
        token = load_i64(s.outputs + 8 * o)
        normalise(s, s.x + token * s.x_stride, o, s.output_norm, output.quantised)
    barrier(s.team, s.n_threads)
    n, stride = s.n_outputs, s.logits_stride
    multiply(s.output, s.normed, 0, n, s.logits, stride, counters, s.n_threads, 0)


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
