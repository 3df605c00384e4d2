"""Texts that begin alike: which blocks of the KV cache a text can take over, and which it leaves.

A text takes the blocks of its longest known beginning, from memory or from disk, but for its
last token, whose logits are wanted.  Whole blocks are shared.  Of the block behind them, which
goes on differently or is not full, the part that agrees is copied, or the block itself is
taken where nobody else needs it.  So not one token of a known beginning is computed again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pyrllama.block_bytes import block_memory
from pyrllama.core import BLOCK_TOKENS, CacheMiss, blocks_for
from pyrllama.kvcache import BlockPool, block_name, root_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.block_bytes import BlockMemory, BlockStore


class Blocks(Protocol):
    """A model as far as it has a KV cache."""

    n_blocks: int


@dataclass(slots=True)
class Held:
    """The blocks that one text holds, in order."""

    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    """Of the full blocks, as far as they are known to the pool."""
    cached: int = 0
    """Tokens of the text whose keys and values the blocks hold."""
    kept: int = 0
    """Full blocks that are on disk, or on their way to it."""
    miss: CacheMiss | None = None
    """Why there were not more of them at the beginning."""


class PrefixCache:
    """The blocks of a model, shared by all texts that begin alike.

    ``identity`` stands for all that shapes the numbers in a block; ``store`` keeps blocks on
    disk.  Without ``reuse`` every text is computed from its first token on.
    """

    def __init__(
        self,
        model: Blocks,
        *,
        identity: bytes = b"",
        store: BlockStore | None = None,
        reuse: bool = True,
    ) -> None:
        self.pool = BlockPool(model.n_blocks)
        self._memory = block_memory(model)
        self.root = root_name(identity)
        """Name of the empty text, which stands for the model."""
        self._store = store if reuse and self._memory else None
        self.shares = reuse
        self._unsaved: deque[tuple[int, bytes]] = deque()

    def begin(self, text: Sequence[int]) -> Held | None:
        """Take the blocks of a text, filled as far as its beginning is known.

        None if fewer are free than it needs.
        """
        held = Held(miss=CacheMiss.OFF)
        try:
            if self.shares:
                self._take_known(held, text)
            if self._missing(held, text) > self.pool.n_free:
                self.pool.give_back(reversed(held.blocks))
                return None
            if self.shares:
                self._take_part(held, text)
                held.miss = self._miss(held, text)
        except BaseException:  # an interrupt while blocks are read from disk, say
            self.pool.give_back(reversed(held.blocks))
            raise
        held.blocks += self.pool.take(self._missing(held, text))
        return held

    def note(self, held: Held, text: Sequence[int]) -> None:
        """Make known which full blocks a text has computed by now."""
        while self.shares and (len(held.names) + 1) * BLOCK_TOKENS <= held.cached:
            place = len(held.names)
            name = self.pool.put(held.blocks[place], self._last(held), _tokens(text, place))
            assert name is not None  # noqa: S101 - the block is full
            held.names.append(name)

    def note_part(self, held: Held, text: Sequence[int]) -> None:
        """Make known what the block behind the full ones holds, though it goes on filling."""
        place = len(held.names)
        if self.shares and held.cached > place * BLOCK_TOKENS:
            part = text[place * BLOCK_TOKENS : held.cached]
            self.pool.put(held.blocks[place], self._last(held), part)

    def end(self, held: Held, text: Sequence[int]) -> None:
        """Let the blocks of a text go; what they hold stays known until they are needed."""
        self.note(held, text)
        self.note_part(held, text)
        self.keep(held, text)
        # The beginning goes last, for other texts are likelier to share it.
        self.pool.give_back(reversed(held.blocks))

    # --- on disk ------------------------------------------------------------------------------

    def keep(self, held: Held, text: Sequence[int]) -> None:
        """Save the full blocks of a text that is long enough, by and by."""
        if self._store is not None and len(text) >= self._store.min_tokens:
            self._unsaved += enumerate(held.names[held.kept :], start=held.kept)
            held.kept = len(held.names)

    def save_some(self) -> None:
        """Hand blocks to the store while it takes them without waiting."""
        while self._unsaved and self._store is not None and self._store.ready:
            self._save_next()

    def close(self) -> None:
        """Save what is left."""
        while self._unsaved:
            self._save_next()
        if self._store is not None:
            self._store.close()

    def _save_next(self) -> None:
        place, name = self._unsaved.popleft()
        block = self.pool.named(name)
        if block is None or self._store is None or self._memory is None or self._store.has(name):
            return  # its memory may have been needed meanwhile
        self._store.save(name, place, self._memory.read_block(block))

    # --- the beginning of a text --------------------------------------------------------------

    def _take_known(self, held: Held, text: Sequence[int]) -> None:
        """Take the full blocks that are known, but never the last token of the text."""
        loaded = 0
        for place in range((len(text) - 1) // BLOCK_TOKENS):
            parent, tokens = self._last(held), _tokens(text, place)
            name = block_name(parent, tokens)
            block = self.pool.named(name)
            if block is not None:
                self.pool.hold(block)
            else:
                block = self._load(held, text, name)
                if block is None:
                    break
                self.pool.put(block, parent, tokens)
                loaded += 1
            held.blocks.append(block)
            held.names.append(name)
            held.cached += BLOCK_TOKENS
        if self._store is not None and loaded:
            self._store.used(held.names)

    def _load(self, held: Held, text: Sequence[int], name: bytes) -> int | None:
        """Return a block filled from disk, if it is there and there is room for all the text."""
        store, memory = self._store, self._memory
        if store is None or memory is None or len(text) < store.min_tokens:
            return None
        if self._missing(held, text) > self.pool.n_free:
            return None
        data = store.load(name)
        if data is None:
            return None
        return self._filled(memory, data)

    def _filled(self, memory: BlockMemory, data: NDArray[np.uint8]) -> int:
        """Take a block and fill it."""
        (block,) = self.pool.take(1)
        try:
            memory.write_block(block, data)
        except BaseException:
            self.pool.give_back([block])
            raise
        return block

    def _take_part(self, held: Held, text: Sequence[int]) -> None:
        """Take as much of the next block as a known one holds."""
        rest = tuple(text[held.cached : len(text) - 1][:BLOCK_TOKENS])
        found = (
            (agreeing(content.tokens, rest), -block, content)
            for block, content in self.pool.following(self._last(held))
        )
        n, block, content = max(found, key=lambda one: one[:2], default=(0, 0, None))
        if content is None or n == 0:
            return
        # Room for the whole text was found before; holding this block may take the last of it.
        taken = self._take_over(-block, held, text, whole=n == len(content.tokens))
        if taken is not None:
            held.blocks.append(taken)
            held.cached += n

    def _take_over(self, block: int, held: Held, text: Sequence[int], *, whole: bool) -> int | None:
        """Return a block to go on in: the known one if none else needs it, or a copy."""
        shared = self.pool.is_held(block)
        self.pool.hold(block)
        scarce = self._missing(held, text) > self.pool.n_free
        if not shared and (whole or scarce):
            self.pool.forget(block)
            return block
        try:
            if self._memory is None or scarce:
                return None
            return self._filled(self._memory, self._memory.read_block(block))
        finally:
            self.pool.give_back([block])

    def _miss(self, held: Held, text: Sequence[int]) -> CacheMiss | None:
        """Return why no more of a text is known."""
        if held.cached == len(text) - 1:
            return None
        place = len(held.names)
        if self.pool.was_lost(block_name(self._last(held), _tokens(text, place))):
            return CacheMiss.EVICTED
        return CacheMiss.DIFFERS if held.cached else CacheMiss.NEW

    def _missing(self, held: Held, text: Sequence[int]) -> int:
        return blocks_for(len(text)) - len(held.blocks)

    def _last(self, held: Held) -> bytes:
        return held.names[-1] if held.names else self.root


def shared_blocks(text: Sequence[int], other: Sequence[int]) -> int:
    """Return how many whole blocks a text can have in common with another one."""
    most = min(len(text) - 1, len(other))
    return agreeing(text[:most], other[:most]) // BLOCK_TOKENS


def agreeing(tokens: Sequence[int], others: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    if tokens[: len(others)] == others[: len(tokens)]:
        return min(len(tokens), len(others))
    pairs = enumerate(zip(tokens, others, strict=False))
    return next(n for n, (token, other) in pairs if token != other)


def _tokens(text: Sequence[int], place: int) -> Sequence[int]:
    """Return the tokens of a block of a text."""
    return text[place * BLOCK_TOKENS : (place + 1) * BLOCK_TOKENS]
