"""How many tokens the KV cache has room for: a whole context, and texts that are written beside."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from pyrllama.core import BLOCK_TOKENS, blocks_for
from pyrllama.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_TEXTS = 512
"""More cannot decode side by side: a step takes no more tokens."""


def wanted_tokens(max_seq_len: int, texts: int = 1, text_tokens: int | None = None) -> int:
    """Return the tokens of a cache in which ``texts`` that begin alike are written side by side.

    The first has a whole context.  Each other one adds ``text_tokens`` behind the blocks that it
    shares, which may begin anywhere in a block; None is a context too.  Raises ``SettingError``
    for counts under 1.
    """
    for name, value in (("texts", texts), ("text_tokens", text_tokens)):
        if value is not None and value < 1:
            raise SettingError(name, value, "a whole number from 1 upwards")
    if texts == 1:
        return max_seq_len
    own = max_seq_len if text_tokens is None else text_tokens + BLOCK_TOKENS - 1
    others = (min(texts, MOST_TEXTS) - 1) * blocks_for(min(own, max_seq_len))
    return (blocks_for(max_seq_len) + others) * BLOCK_TOKENS


def most_tokens(least: int, wanted: int, fits: Callable[[int], bool]) -> int:
    """Return the most tokens from ``least`` to ``wanted`` that fit, the others in whole blocks.

    ``least`` is not asked about: what takes too much at its least is refused elsewhere.
    """
    if wanted <= least or fits(wanted):
        return wanted
    first = blocks_for(least)
    sizes = range(first + 1, wanted // BLOCK_TOKENS)
    n_fitting = bisect_left(sizes, True, key=lambda n: not fits(n * BLOCK_TOKENS))
    return (first + n_fitting) * BLOCK_TOKENS if n_fitting else least


def texts_that_fit(n_blocks: int, prompt_tokens: int, text_tokens: int) -> int:
    """Return how many continuations of a prompt a cache holds side by side at full length.

    They share the whole blocks before the prompt's last token; the last token of a text is never
    in the cache.  Both counts are 1 or more.
    """
    whole = blocks_for(prompt_tokens + text_tokens - 1)
    shared = (prompt_tokens - 1) // BLOCK_TOKENS
    return 1 + max(0, n_blocks - whole) // (whole - shared)
