"""Which requests a step advances, by how many tokens, and in which blocks of the KV cache.

The oldest request comes first: it takes the block that it needs from the youngest, which waits
in front and is read again later.  So the oldest one always advances, and all of them end.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pyrllama.core import BLOCK_TOKENS, Chunk, blocks_for
from pyrllama.prefix import Held, shared_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyrllama.backend import Model
    from pyrllama.generation import Generation
    from pyrllama.prefix import PrefixCache
    from pyrllama.speculation import Speculation


class Scheduler:
    """The requests of an engine that have not ended: those that wait, and those that run."""

    def __init__(
        self, model: Model, prefixes: PrefixCache, speculation: Speculation | None
    ) -> None:
        self._model = model
        self._prefixes = prefixes
        self._pool = prefixes.pool
        self._speculation = speculation
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []  # the oldest first

    @property
    def unfinished(self) -> tuple[Generation, ...]:
        """All requests, those that wait before those that run."""
        return (*self._waiting, *self._running)

    def add(self, generation: Generation) -> None:
        """Let a request wait behind all others."""
        self._waiting.append(generation)

    def remove(self, generation: Generation) -> None:
        """Take a request out that has ended, and let its blocks go."""
        if generation in self._running:
            self._running.remove(generation)
        else:
            self._waiting.remove(generation)
        self._free(generation)

    def plan(self) -> list[tuple[Generation, Chunk]]:
        """Choose what the next batch computes: decodes first, then as much prompt as fits."""
        budget = self._model.max_batch_tokens
        plan = []
        for generation in tuple(self._running):
            # Asked anew each time: an older request may just have taken this one's blocks.
            if budget > 0 and generation.decoding and self._grow(generation):
                plan.append((generation, _next_chunk(generation, 1)))
                budget -= 1
        prompts = self._prompts()
        while budget > 0 and (prompt := next(prompts, None)) is not None:
            count = min(budget, prompt.pending)
            plan.append((prompt, _next_chunk(prompt, count)))
            budget -= count
        if self._speculation and len(plan) == 1 and plan[0][0].decoding:
            return [(plan[0][0], self._drafted(plan[0][0], self._speculation))]
        return plan

    def _prompts(self) -> Iterator[Generation]:
        """Yield the running requests with prompt left, then admit waiting ones one by one."""
        yield from [generation for generation in self._running if not generation.decoding]
        while self._waiting and not self._awaits_another(self._waiting[0]):
            generation = self._waiting[0]
            held = self._prefixes.begin(generation.text)
            if held is None:
                return
            self._waiting.popleft()
            generation.held = held
            if generation.reused is None:
                generation.reused, generation.not_reused = held.cached, held.miss
            self._running.append(generation)
            yield generation

    def _awaits_another(self, generation: Generation) -> bool:
        """Tell whether a running request is computing blocks that this one will share."""
        return self._prefixes.shares and any(
            shared_blocks(generation.text, other.text) > other.cached // BLOCK_TOKENS
            for other in self._running
            if not other.decoding
        )

    def _grow(self, generation: Generation) -> bool:
        """Take the block that the next token needs, from the youngest request if need be.

        Returns False if the generation itself was the youngest and waits now.
        """
        missing = blocks_for(len(generation.text)) - len(generation.held.blocks)
        while missing > self._pool.n_free:
            youngest = self._running.pop()
            self._free(youngest)
            self._waiting.appendleft(youngest)
            if youngest is generation:
                return False
        generation.held.blocks += self._pool.take(max(missing, 0))
        return True

    def _drafted(self, generation: Generation, speculation: Speculation) -> Chunk:
        """Put the tokens that may follow behind the next one, as far as there is room."""
        blocks = generation.held.blocks
        room = min(
            generation.limit - generation.generated - 1,
            self._model.max_batch_tokens - 1,
            (len(blocks) + self._pool.n_free) * BLOCK_TOKENS - len(generation.text),
        )
        draft = speculation.draft(generation.text, room)
        generation.drafted += len(draft)
        end = len(generation.text) + len(draft)
        blocks += self._pool.take(max(blocks_for(end) - len(blocks), 0))
        return Chunk(
            tokens=(generation.text[-1], *draft),
            start=generation.cached,
            blocks=tuple(blocks[: blocks_for(end)]),
            outputs=1 + len(draft),
        )

    def _free(self, generation: Generation) -> None:
        self._prefixes.end(generation.held, generation.text)
        generation.held = Held()


def _next_chunk(generation: Generation, count: int) -> Chunk:
    """Cut the next ``count`` tokens; logits are wanted only where the text ends."""
    end = generation.cached + count
    return Chunk(
        tokens=tuple(generation.text[generation.cached : end]),
        start=generation.cached,
        blocks=tuple(generation.held.blocks[: blocks_for(end)]),
        outputs=1 if end == len(generation.text) else 0,
    )
