"""Rows of logits, and what the sampler makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import Sampling, TokenRules
from pyrllama.sampling import distribution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Row = NDArray[np.float32]

OFF: dict[str, Any] = {"top_k": 0}
"""What leaves the whole vocabulary."""


def row(*logits: float) -> Row:
    return np.array(logits, np.float32)


def log(*probabilities: float) -> Row:
    return np.asarray(np.log(np.array(probabilities)), np.float32)


def chances(
    logits: Row, prompt: Sequence[int] = (), rules: TokenRules | None = None, **settings: Any
) -> NDArray[np.float64]:
    return distribution(logits, Sampling(**{**OFF, **settings}), prompt, rules or TokenRules())


def kept(logits: Row, **settings: Any) -> list[int]:
    return np.flatnonzero(chances(logits, **settings)).tolist()
