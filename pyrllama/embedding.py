"""A vector that stands for a text: the mean of what the model makes of its tokens.

Every token's state behind the last layer, normalised as before the output projection, is
averaged over the text, BOS included where the model wants it, and scaled to a length of 1.  So
the product of two vectors is the cosine of their angle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.core import Batch
    from pyrllama.engine import Engine


@runtime_checkable
class StateModel(Protocol):
    """A model whose states can be had."""

    def final_states(self, batch: Batch) -> NDArray[np.float32]:
        """Return the normalised states after the last layer, ``(n_tokens, dim)``."""
        ...


def embed(engine: Engine, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the vector of a text, ``(dim,)``.

    Raises ``BackendError`` for a backend that does not give the states or gives others than
    finite numbers, and as ``Engine.logits`` does.
    """
    model = engine.model
    if not isinstance(model, StateModel):
        raise BackendError("this backend gives no hidden states; embed with --backend cpu")
    total = np.zeros(model.config.dim)
    for _, states in engine.state_batches(model.final_states, tokens):
        total += states.sum(axis=0, dtype=np.float64)
    length = np.linalg.norm(total)
    if not 0 < length < np.inf:
        raise BackendError(
            "the states of this text are not finite numbers over 0: the weights are damaged, or "
            "their type cannot hold the numbers on the way; check the checkpoint"
        )
    return np.asarray(total / length, np.float32)
