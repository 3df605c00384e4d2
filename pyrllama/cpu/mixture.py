"""Memory in which the experts of a model work: their choice, and rows of their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.cpu.records import ACTIVATIONS, MIXTURE, ROWS_AT_ONCE, TILE_ROWS, TILED_ROWS, Records
from pyrllama.cpu.scratch import ActivationRows, Rows

if TYPE_CHECKING:
    from pyrllama.model_config import Experts, ModelConfig


def places_of(experts: Experts, n_tokens: int) -> int:
    """Return how many rows the experts of a batch need at most.

    There is a row for each token and each of its experts, and behind those of an expert are
    rows that its products write too: up to whole sixes, or up to whole matrix tiles.
    """
    n_pairs = n_tokens * experts.used
    n_active = min(experts.count, n_pairs)
    n_tiled = min(n_active, n_pairs // TILED_ROWS)
    return n_pairs + (ROWS_AT_ONCE - 1) * n_active + (TILE_ROWS - 1) * n_tiled


def records_of_experts(pool: ActivationRows, count: int) -> Records:
    """Return a record of rows for each expert, and behind them those of the rows' wide form.

    Each step says anew where in the pool the rows begin.
    """
    records = Records(ACTIVATIONS, 2 * count)
    records.words[:count], records.words[count:] = pool.words
    for i in range(count):
        records.set(i, wide=records.address_of(count + i))
    return records


class MixtureMemory:
    """The MIXTURE record of a model, with room for batches of ``rows`` tokens.

    ``hidden`` are the rows that ``ffn_down`` multiplies, of which there are ``places``.
    """

    def __init__(self, config: ModelConfig, experts: Experts, rows: int) -> None:
        places = places_of(experts, rows)
        self.hidden = ActivationRows(places, config.ffn_dim)
        self._inputs = ActivationRows(places, config.dim)
        self._of_experts = [
            records_of_experts(pool, experts.count) for pool in (self._inputs, self.hidden)
        ]
        self._outputs = Rows(places, config.dim)
        self._logits, self._probabilities = Rows(rows, experts.count), Rows(rows, experts.count)
        self._pairs = np.zeros((2, rows, experts.used), np.int64)
        self._weights = np.zeros((rows, experts.used), np.float32)
        self._by_expert = np.zeros((4, experts.count), np.int64)
        self._row_weights = np.zeros(places, np.float32)
        self._record = Records(MIXTURE)
        self._record.set(
            n_experts=experts.count,
            n_used=experts.used,
            normalised=experts.normalised,
            logits=self._logits.address,
            logits_stride=self._logits.stride,
            probabilities=self._probabilities.address,
            chosen=self._pairs[0].ctypes.data,
            places=self._pairs[1].ctypes.data,
            weights=self._weights.ctypes.data,
            active=self._by_expert[0].ctypes.data,
            counts=self._by_expert[1].ctypes.data,
            filled=self._by_expert[2].ctypes.data,
            starts=self._by_expert[3].ctypes.data,
            row_weights=self._row_weights.ctypes.data,
            inputs=self._inputs.address,
            expert_inputs=self._of_experts[0].address,
            expert_hidden=self._of_experts[1].address,
            outputs=self._outputs.address,
            outputs_stride=self._outputs.stride,
        )
        self.address = self._record.address
