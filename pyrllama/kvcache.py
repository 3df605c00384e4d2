"""The blocks of the KV cache: who may take one, and how many are left.

A block holds the keys and values of ``BLOCK_TOKENS`` consecutive tokens in every layer.  The
numbers handed out here are all that a backend sees of it; the memory itself is the backend's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import CacheFullError

if TYPE_CHECKING:
    from collections.abc import Iterable


def blocks_for(n_tokens: int) -> int:
    """Return how many blocks hold the keys and values of ``n_tokens`` tokens."""
    return -(-n_tokens // BLOCK_TOKENS)


class BlockPool:
    """The free blocks of a cache of ``n_blocks``, numbered from 0."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        # A stack: the block given back last is the likeliest to be in the CPU's own caches.
        self._free = list(reversed(range(n_blocks)))
        self._taken: set[int] = set()

    @property
    def n_free(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...]:
        """Take ``count`` blocks; raises ``CacheFullError``, and takes none, if fewer are free."""
        if count > len(self._free):
            raise CacheFullError(
                f"{count} blocks of {BLOCK_TOKENS} tokens are wanted, but only {len(self._free)} "
                f"of {self.n_blocks} are free; wait for a running request or raise --max-seq-len"
            )
        blocks = tuple(self._free.pop() for _ in range(count))
        self._taken.update(blocks)
        return blocks

    def give_back(self, blocks: Iterable[int]) -> None:
        """Make blocks free again; raises ``ValueError`` for one that is not taken."""
        for block in blocks:
            if block not in self._taken:
                raise ValueError(f"block {block} of the KV cache is not taken")
            self._taken.remove(block)
            self._free.append(block)
