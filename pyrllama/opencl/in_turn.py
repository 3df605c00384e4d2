"""Tokens of different sequences that take steps of their own, not one batch together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.core import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.opencl.stage import Stage

IN_TURN = 2
"""So many tokens of different sequences take a step of one kernel each."""
LIGHT_LAYER = 256 << 20
"""Bytes of a layer up to which they do.

A batch is some ten launches a layer.  On an H200 two tokens took 3.1 ms one after the other and 5.1
together at the 7B shape in Q4_0 (116 MB a layer), but 7.6 and 6.3 in F16 (413 MB).
"""


def in_turn(stage: Stage, batch: Batch) -> bool:
    """Whether tokens of different sequences are sooner done one after the other."""
    light = stage.weight_bytes <= LIGHT_LAYER * len(stage.part.layers)
    alone = len(batch.chunks) == batch.n_tokens == batch.n_outputs
    return stage.persists and light and alone and batch.n_tokens == IN_TURN


def one_by_one(
    batch: Batch, hidden: NDArray[np.float32] | None
) -> Iterator[tuple[Batch, NDArray[np.float32] | None]]:
    """Yield chunks of one token each as batches of their own, with their states."""
    for i, chunk in enumerate(batch.chunks):
        yield Batch((chunk,)), None if hidden is None else hidden[i : i + 1]
