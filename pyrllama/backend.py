"""What the engine asks of a backend, whichever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.core import Batch
    from pyrllama.model_config import ModelConfig


class Model(Protocol):
    """What a backend offers: one forward pass over a batch, and the KV cache it writes to.

    One that is a ``block_bytes.BlockMemory`` too has its blocks copied and kept on disk; one
    that is an ``output_rows.TopLogitsModel`` is asked for no more logits than a choice depends on.
    """

    config: ModelConfig
    n_blocks: int
    """Blocks of ``BLOCK_TOKENS`` tokens that the KV cache has."""
    max_batch_tokens: int
    """Tokens that one forward pass takes at most."""
    weight_bytes: int
    """Bytes of weights in memory."""
    decode_bytes: int
    """Bytes of weights that one decoded token reads."""
    kv_bytes_per_token: int
    """Bytes of keys and values that one token of context adds."""

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Compute the wanted logits, ``(n_outputs, vocab)``, chunk by chunk in order."""
        ...

    def close(self) -> None:
        """Free the weights and the cache."""
        ...
