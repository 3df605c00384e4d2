"""Sums of the squares of what the experts of a layer multiply, each one's of its own tokens.

An expert's rows are in the order of their tokens, in a batch too, so that here as in ``squares.py``
sums depend neither on the threads nor on how a text is cut.  What ``ffn_down`` multiplies counts
before it is weighed, as the model defines the matrix's input, though products take it weighed.
Where nobody counts, the addresses in a LAYER record are 0.
"""

from __future__ import annotations

from pyrllama.cpu.kernel import View, part, view
from pyrllama.cpu.records import ACTIVATIONS
from pyrllama.cpu.simd import load_i64, store
from pyrllama.cpu.squares import add_columns, add_squares

Activations = view(ACTIVATIONS)

ACTIVATIONS_BYTES = ACTIVATIONS.n_bytes


@part
def add_inputs_of_one(s: View, layer: View, m: View, row: int, worker: int) -> None:
    """Count the only token, in ``row`` of this thread, for the experts that it chose."""
    if layer.expert_squares == 0:
        return
    sums_stride = 8 * Activations(s.normed).n_cols
    for place in range(worker * m.n_used, (worker + 1) * m.n_used):
        e = load_i64(m.chosen + 8 * place)
        sums = layer.expert_squares + e * sums_stride
        add_squares(s.normed, row, 1, sums, worker, s.n_threads)
        if worker == 0:
            add_tokens(layer, e, 1)


@part
def add_inputs(s: View, layer: View, m: View, worker: int) -> None:
    """Count the tokens of a batch, gathered by expert, for the experts that they chose."""
    if layer.expert_squares == 0:
        return
    sums_stride = 8 * Activations(s.normed).n_cols
    for i in range(m.n_active):
        e = load_i64(m.active + 8 * i)
        n, sums = load_i64(m.counts + 8 * e), layer.expert_squares + e * sums_stride
        inputs = m.expert_inputs + e * ACTIVATIONS_BYTES
        add_squares(inputs, 0, n, sums, worker, s.n_threads)
        if worker == 0:
            add_tokens(layer, e, n)


@part
def add_tokens(layer: View, expert: int, n: int) -> None:
    """Count ``n`` tokens for an expert."""
    count = layer.expert_tokens + 8 * expert
    store(count, load_i64(count) + n)


@part
def add_hidden(s: View, layer: View, expert: int, x: int, first: int, last: int) -> None:
    """Count some groups of columns of the row at ``x``, which the expert's ``ffn_down`` multiplies.

    No two threads take the same groups of an expert at a time.
    """
    if layer.hidden_squares == 0:
        return
    sums = layer.hidden_squares + expert * 8 * Activations(s.hidden).n_cols
    add_columns(x, 0, 1, sums, 16 * first, 16 * last, 16)
