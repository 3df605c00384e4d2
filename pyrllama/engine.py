"""Requests in, tokens out: schedule a batch, run the model, sample, emit.

The life of a request:

1. ``submit`` checks it against the context and the cache, and lets it wait.
2. ``step`` admits it, the first come first, once the cache has blocks for its whole prompt.
3. Its prompt goes through the model in chunks, beside the single tokens of other requests.
4. The logits of the last prompt token give the first token; from then on it decodes, one
   token a step, and takes another block whenever the last one is full.
5. If no block is free, the youngest request gives up its blocks and waits in front; its text
   so far goes through the model again later.  The oldest one therefore always advances, and
   since no request is admitted that the whole cache could not hold, all of them end.
6. A stop token, a full context or ``cancel`` ends it, and its blocks are free again.

An engine belongs to one thread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pyrllama.core import BLOCK_TOKENS, Batch, Chunk, FinishReason, Timings
from pyrllama.errors import (
    CacheFullError,
    NoTokenLeftError,
    PromptError,
    PromptTooLongError,
    SettingError,
    StructureError,
)
from pyrllama.kvcache import BlockPool, blocks_for
from pyrllama.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pyrllama.core import ModelConfig, Request
    from pyrllama.errors import RllamaError


class Model(Protocol):
    """What a backend offers: one forward pass over a batch, and the KV cache it writes to."""

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


@dataclass(slots=True, eq=False)
class Generation:
    """A request on its way through the engine, and what it has yielded so far."""

    request: Request
    sampler: Sampler
    limit: int
    """Tokens to generate at most."""
    text: list[int]
    """The prompt's ids and the generated ones behind them."""
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    error: RllamaError | None = None
    """Why this text alone could not go on."""
    blocks: list[int] = field(default_factory=list)
    cached: int = 0
    """Tokens of ``text`` whose keys and values the cache holds."""
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def generated(self) -> int:
        """Tokens generated so far, a stop token included."""
        return len(self.logprobs)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids generated so far."""
        return tuple(self.text[len(self.request.tokens) :])

    @property
    def pending(self) -> int:
        """Tokens of the text that the model has not seen yet."""
        return len(self.text) - self.cached

    @property
    def decoding(self) -> bool:
        """Whether all but the token sampled last is in the cache."""
        return self.generated > 0 and self.pending == 1

    @property
    def timings(self) -> Timings:
        """Where the time went so far."""
        return Timings(
            prompt_tokens=len(self.request.tokens),
            prompt_seconds=self.prompt_seconds,
            generated_tokens=self.generated,
            decode_seconds=self.decode_seconds,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """A token that a step sampled; ``finish`` tells that it was the generation's last one."""

    generation: Generation
    token: int
    logprob: float
    finish: FinishReason | None


class Engine:
    """Runs any number of requests side by side on one model.

    ``max_seq_len`` counts prompt and continuation together.  ``stop_ids`` are the tokens that
    end a text; they are emitted as the last token of it.
    """

    def __init__(
        self, model: Model, max_seq_len: int, stop_ids: frozenset[int] = frozenset()
    ) -> None:
        self.model = model
        self.max_seq_len = max_seq_len
        self._stop_ids = stop_ids
        self._pool = BlockPool(model.n_blocks)
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []  # the oldest first

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._running)

    @property
    def free_blocks(self) -> int:
        """Blocks of the KV cache that no request holds."""
        return self._pool.n_free

    def submit(self, request: Request) -> Generation:
        """Queue a request; the steps that follow work on it.

        Raises ``PromptError`` for an empty prompt or ids outside the vocabulary,
        ``PromptTooLongError`` when no token is left for the answer, ``SettingError`` for a
        ``max_tokens`` under 1, and ``CacheFullError`` when the whole cache is too small.
        """
        if request.max_tokens is not None and request.max_tokens < 1:
            raise SettingError("max_tokens", request.max_tokens, "a whole number from 1 upwards")
        self._check_tokens(request.tokens)
        room = self.max_seq_len - len(request.tokens)
        if room < 1:
            raise PromptTooLongError(len(request.tokens), self.max_seq_len)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        self._check_capacity(len(request.tokens) + limit - 1)  # the last token is never fed back
        sampler = Sampler(request.sampling, request.tokens, request.rules)
        generation = Generation(request, sampler, limit, text=list(request.tokens))
        self._waiting.append(generation)
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a generation now and free its blocks; one that has ended is left as it is."""
        if generation.finish is None:
            self._retire(generation, FinishReason.CANCELLED)

    def close(self) -> None:
        """Cancel everything and free the model."""
        for generation in (*self._waiting, *self._running):
            self.cancel(generation)
        self.model.close()

    def step(self) -> list[Event]:
        """Run one batch through the model and return the tokens that it gave.

        A step that only reads the beginning of a prompt gives none.  If the model or a sampler
        raises, the requests of that batch are cancelled and the error goes on to the caller;
        where a request's own bans or grammar leave it no token, it alone is, and keeps the error.
        """
        plan = self._schedule()
        if not plan:
            return []
        decoding = [generation.generated > 0 for generation, _ in plan]
        started = perf_counter()
        try:
            logits = self.model.forward(Batch(tuple(chunk for _, chunk in plan)))
            events = self._advance(plan, logits)
        except BaseException:
            for generation, _ in plan:
                self.cancel(generation)
            raise
        seconds = perf_counter() - started
        for (generation, _), decoded in zip(plan, decoding, strict=True):
            if decoded:
                generation.decode_seconds += seconds
            else:
                generation.prompt_seconds += seconds
        return events

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits behind every one of ``tokens``: ``(len(tokens), vocab)``.

        Raises as ``submit`` does; the prompt may fill the whole context here.
        """
        batches = self.logit_batches(tokens)
        rows = np.empty((len(tokens), self.model.config.vocab_size), dtype=np.float32)
        for start, part in batches:
            rows[start : start + len(part)] = part
        return rows

    def logit_batches(
        self, tokens: Sequence[int], first: int = 0
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the logits behind the tokens from ``first`` on, as many rows as a pass gives.

        Every item is the position of its first row and the rows, ``(rows, vocab)``.  Raises as
        ``logits`` does, before the first pass.
        """
        self._check_tokens(tokens)
        if len(tokens) > self.max_seq_len:
            raise PromptTooLongError(len(tokens), self.max_seq_len)
        self._check_capacity(len(tokens))
        return self._run_batches(tokens, first)

    def _run_batches(
        self, tokens: Sequence[int], first: int
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        blocks = self._pool.take(blocks_for(len(tokens)))
        try:
            for start in range(0, len(tokens), self.model.max_batch_tokens):
                part = tuple(tokens[start : start + self.model.max_batch_tokens])
                end = start + len(part)
                outputs = min(len(part), max(0, end - first))
                chunk = Chunk(part, start, blocks[: blocks_for(end)], outputs)
                rows = self.model.forward(Batch((chunk,)))
                if outputs:
                    yield end - outputs, rows
        finally:
            self._pool.give_back(blocks)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise PromptError("the prompt has no tokens; give at least the model's BOS token")
        vocab_size = self.model.config.vocab_size
        for position, token in enumerate(tokens):
            if not 0 <= token < vocab_size:
                raise PromptError(
                    f"token {token} at position {position} of the prompt is outside the model's "
                    f"vocabulary of {vocab_size}; use the model's own tokenizer"
                )

    def _check_capacity(self, n_tokens: int) -> None:
        needed = blocks_for(n_tokens)
        if needed > self._pool.n_blocks:
            raise CacheFullError(
                f"the request may grow to {n_tokens} tokens, but the KV cache holds "
                f"{self._pool.n_blocks * BLOCK_TOKENS}; lower max_tokens or load the model with "
                f"a larger max_seq_len"
            )

    def _schedule(self) -> list[tuple[Generation, Chunk]]:
        """Choose what the next batch computes: decodes first, then as much prompt as fits."""
        budget = self.model.max_batch_tokens
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
        return plan

    def _prompts(self) -> Iterator[Generation]:
        """Yield the running requests with prompt left, then admit waiting ones one by one."""
        yield from [generation for generation in self._running if not generation.decoding]
        while self._waiting:
            needed = blocks_for(len(self._waiting[0].text))
            if needed > self._pool.n_free:
                return
            generation = self._waiting.popleft()
            generation.blocks += self._pool.take(needed)
            self._running.append(generation)
            yield generation

    def _grow(self, generation: Generation) -> bool:
        """Take the block that the next token needs, from the youngest request if need be.

        Returns False if the generation itself was the youngest and waits now.
        """
        missing = blocks_for(len(generation.text)) - len(generation.blocks)
        while missing > self._pool.n_free:
            youngest = self._running.pop()
            self._free(youngest)
            self._waiting.appendleft(youngest)
            if youngest is generation:
                return False
        generation.blocks += self._pool.take(missing)
        return True

    def _advance(
        self, plan: list[tuple[Generation, Chunk]], logits: NDArray[np.float32]
    ) -> list[Event]:
        """Note what the cache holds now, and sample where a text has been read to its end."""
        rows = iter(logits)
        events = []
        for generation, chunk in plan:
            generation.cached += len(chunk.tokens)
            if chunk.outputs:
                row = next(rows)
                try:
                    events.append(self._sample(generation, row))
                except (NoTokenLeftError, StructureError) as error:
                    generation.error = error  # the texts beside it go on
                    self._retire(generation, FinishReason.CANCELLED)
        return events

    def _sample(self, generation: Generation, row: NDArray[np.float32]) -> Event:
        token, logprob = generation.sampler.sample(row)
        generation.sampler.accept(token)
        generation.text.append(token)
        generation.logprobs.append(logprob)
        finish = None
        if token in self._stop_ids:
            finish = FinishReason.STOP
        elif generation.generated >= generation.limit:
            finish = FinishReason.LENGTH
        if finish is not None:
            self._retire(generation, finish)
        return Event(generation, token, logprob, finish)

    def _retire(self, generation: Generation, finish: FinishReason) -> None:
        generation.finish = finish
        if generation in self._running:
            self._running.remove(generation)
        else:
            self._waiting.remove(generation)
        self._free(generation)

    def _free(self, generation: Generation) -> None:
        self._pool.give_back(generation.blocks)
        generation.blocks.clear()
        generation.cached = 0


def _next_chunk(generation: Generation, count: int) -> Chunk:
    """Cut the next ``count`` tokens; logits are wanted only where the text ends."""
    end = generation.cached + count
    return Chunk(
        tokens=tuple(generation.text[generation.cached : end]),
        start=generation.cached,
        blocks=tuple(generation.blocks[: blocks_for(end)]),
        outputs=1 if end == len(generation.text) else 0,
    )
