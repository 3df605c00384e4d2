"""The blocks of the KV cache: who holds one, what is in it, and how many can be taken.

A block holds the keys and values of ``BLOCK_TOKENS`` consecutive tokens in every layer.  The
numbers handed out here are all that a backend sees of it; the memory itself is the backend's.

A full block is named by a hash that is chained: of the name of the block before it and of its
own tokens.  So a name stands for every token up to the block's end.  A block that nobody holds
any more keeps its content until the pool needs it, the one unused for longest first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import CacheFullError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NAME_BYTES = 32
REMEMBERED = 4
"""Names of lost blocks are remembered for so many times as many blocks as there are."""


def root_name(identity: bytes) -> bytes:
    """Return the name of the empty text for a model; ``identity`` is all that shapes numbers."""
    return hashlib.blake2b(identity, digest_size=NAME_BYTES, person=b"rllama root").digest()


def block_name(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the name of the block with these tokens behind the one named ``parent``."""
    digest = hashlib.blake2b(parent, digest_size=NAME_BYTES, person=b"rllama block")
    digest.update(np.array(tokens, "<i8").tobytes())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Content:
    """What a block holds: tokens behind the text that ``parent`` names.

    ``name`` is that of the text up to the block's end, None for a block that is not full.
    """

    parent: bytes
    tokens: tuple[int, ...]
    name: bytes | None


class BlockPool:
    """The blocks of a cache of ``n_blocks``, numbered from 0."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        # A stack: the block given back last is the likeliest to be in the CPU's own caches.
        self._empty = list(reversed(range(n_blocks)))
        self._holders = [0] * n_blocks
        self._idle: OrderedDict[int, None] = OrderedDict()  # unused for longest first
        self._contents: dict[int, Content] = {}
        self._named: dict[bytes, int] = {}
        self._following: defaultdict[bytes, set[int]] = defaultdict(set)
        self._lost: OrderedDict[bytes, None] = OrderedDict()

    @property
    def n_free(self) -> int:
        """Blocks that can be taken now, those with content that nobody holds included."""
        return len(self._empty) + len(self._idle)

    def take(self, count: int) -> tuple[int, ...]:
        """Take ``count`` blocks; raises ``CacheFullError``, and takes none, if fewer are free.

        Content is lost only when no empty block is left.
        """
        if count > self.n_free:
            raise CacheFullError(
                f"{count} blocks of {BLOCK_TOKENS} tokens are wanted, but only {self.n_free} "
                f"of {self.n_blocks} are free; wait for a running request or raise --max-seq-len"
            )
        blocks = tuple(self._empty.pop() if self._empty else self._evict() for _ in range(count))
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def hold(self, block: int) -> None:
        """Take a block with its content, or share it with those who hold it."""
        if not self._holders[block]:
            del self._idle[block]
        self._holders[block] += 1

    def is_held(self, block: int) -> bool:
        """Tell whether anybody holds a block."""
        return self._holders[block] > 0

    def give_back(self, blocks: Iterable[int]) -> None:
        """Let blocks go; raises ``ValueError`` for one that is not taken.

        What nobody holds then is free: with its content, the later the longer, or empty.
        """
        for block in blocks:
            if not (0 <= block < self.n_blocks and self._holders[block]):
                raise ValueError(f"block {block} of the KV cache is not taken")
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._contents:
                self._idle[block] = None
            else:
                self._empty.append(block)

    # --- what is in the blocks ----------------------------------------------------------------

    def put(self, block: int, parent: bytes, tokens: Sequence[int]) -> bytes | None:
        """Note what a held block holds, and return its name if it is full.

        Content that another block has already is not noted twice.
        """
        self.forget(block)
        full = len(tokens) == BLOCK_TOKENS
        content = Content(parent, tuple(tokens), block_name(parent, tokens) if full else None)
        if not self._is_known(content):
            self._contents[block] = content
            self._following[parent].add(block)
            if content.name:
                self._named[content.name] = block
                self._lost.pop(content.name, None)
        return content.name

    def forget(self, block: int) -> None:
        """Drop what is known of a held block, which is about to be written."""
        content = self._contents.pop(block, None)
        if content is None:
            return
        self._following[content.parent].discard(block)
        if not self._following[content.parent]:
            del self._following[content.parent]
        if content.name:
            del self._named[content.name]

    def named(self, name: bytes) -> int | None:
        """Return the full block of a name."""
        return self._named.get(name)

    def was_lost(self, name: bytes) -> bool:
        """Tell whether the block of a name was here and had to go."""
        return name in self._lost

    def following(self, parent: bytes) -> Iterator[tuple[int, Content]]:
        """Yield the blocks, full or not, that hold what follows the text of a name."""
        for block in self._following.get(parent, ()):
            yield block, self._contents[block]

    def _is_known(self, content: Content) -> bool:
        if content.name:
            return content.name in self._named
        n = len(content.tokens)
        return any(
            other.tokens[:n] == content.tokens for _, other in self.following(content.parent)
        )

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        name = self._contents[block].name
        self.forget(block)
        if name:
            self._lost[name] = None
            if len(self._lost) > REMEMBERED * self.n_blocks:
                self._lost.popitem(last=False)
        return block
