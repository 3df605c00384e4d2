"""The greatest logits of whole rows, as a device gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import TopLogits

if TYPE_CHECKING:
    from numpy.typing import NDArray


def top_of_row(row: NDArray[np.float32], k: int) -> TopLogits:
    """Return the ``k`` greatest logits of a row, by sorting all of it."""
    ids = np.lexsort((np.arange(row.size), -row))[:k]
    wide = row.astype(np.float64)
    return TopLogits(row[ids], ids, float(np.exp(wide - wide.max()).sum()))
