"""Requests in, tokens out: schedule a batch (``scheduler.py``), run the model, sample, emit.

The life of a request:

1. ``submit`` checks it against the context and the cache, and lets it wait.
2. ``step`` admits it, the first come first, once the cache has blocks for its whole prompt.
   It takes those that hold the beginning of its text already (``prefix.py``), and waits for
   a running request that is just computing such a beginning.
3. Its prompt goes through the model in chunks, beside the single tokens of other requests.
4. The logits of the last prompt token give the first token; from then on it decodes, one
   token a step, and takes another block whenever the last one is full.  Alone, it may have
   the tokens that speculation proposes checked in the same step, and keep those that it
   would have chosen (``speculation.py``).
5. If no block is free, the youngest request gives up its blocks and waits in front; its text
   so far goes through the model again later.  The oldest one therefore always advances, and
   since no request is admitted that the whole cache could not hold, all of them end.
6. A stop token, a full context or ``cancel`` ends it, and its blocks are free again, but
   keep what they hold until others need them.

An engine belongs to one thread.
"""

from __future__ import annotations

from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import BLOCK_TOKENS, Batch, Chunk, FinishReason, blocks_for
from pyrllama.errors import (
    CacheFullError,
    NoTokenLeftError,
    PromptError,
    PromptTooLongError,
    SettingError,
    StructureError,
)
from pyrllama.generation import Event, Generation
from pyrllama.output_rows import output_rows
from pyrllama.prefix import PrefixCache
from pyrllama.sampling import Sampler
from pyrllama.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pyrllama.backend import Model
    from pyrllama.core import LogitRow, Request
    from pyrllama.speculation import Speculation

    Rows = NDArray[np.float32]
    """A row of numbers for each of some tokens."""


class Engine:
    """Runs any number of requests side by side on one model.

    ``max_seq_len`` counts prompt and continuation together.  ``stop_ids`` are the tokens that
    end a text; they are emitted as the last token of it.  ``prefixes`` are the blocks of the
    model's cache, by default in memory alone.
    """

    def __init__(
        self,
        model: Model,
        max_seq_len: int,
        stop_ids: frozenset[int] = frozenset(),
        *,
        prefixes: PrefixCache | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.model = model
        self.max_seq_len = max_seq_len
        self._stop_ids = stop_ids
        self.prefixes = prefixes or PrefixCache(model)
        """The blocks of the KV cache, and what of the texts is in them."""
        self._pool = self.prefixes.pool
        self._speculation = speculation
        self._scheduler = Scheduler(model, self.prefixes, speculation)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._scheduler.unfinished)

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
        self._scheduler.add(generation)
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a generation now and free its blocks; one that has ended is left as it is."""
        if generation.finish is None:
            self._retire(generation, FinishReason.CANCELLED)

    def close(self) -> None:
        """Cancel everything, save what is to be kept, and free the model."""
        for generation in self._scheduler.unfinished:
            self.cancel(generation)
        self.prefixes.close()
        if self._speculation:
            self._speculation.close()
        self.model.close()

    def step(self) -> list[Event]:
        """Run one batch through the model and return the tokens that it gave.

        A step that only reads the beginning of a prompt gives none.  If the model or a sampler
        raises, the requests of that batch are cancelled and the error goes on to the caller;
        where a request's own bans or grammar leave it no token, it alone is, and keeps the error.
        """
        started = perf_counter()
        plan = self._scheduler.plan()
        if not plan:
            return []
        decoding = [generation.generated > 0 for generation, _ in plan]
        try:
            batch = Batch(tuple(chunk for _, chunk in plan))
            rows = output_rows(self.model, batch, [generation.sampler for generation, _ in plan])
            events = self._advance(plan, rows)
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
        chunk = plan[0][1]
        # A text that gave up its blocks is read again in steps that say nothing of drafts.
        if self._speculation and decoding == [True] and chunk.outputs == len(chunk.tokens):
            self._speculation.record(seconds, chunk.outputs - 1, len(events))
        self.prefixes.save_some()
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
        self._check_text(tokens)
        return self._run_batches(self.model.forward, tokens, first)

    def state_batches(
        self, states: Callable[[Batch], Rows], tokens: Sequence[int]
    ) -> Iterator[tuple[int, Rows]]:
        """Yield what a method of the model gives of every token: ``(rows, width)`` a pass.

        Raises as ``logits`` does, before the first pass.
        """
        self._check_text(tokens)
        return self._run_batches(states, tokens, 0)

    def _run_batches(
        self, run: Callable[[Batch], Rows], tokens: Sequence[int], first: int
    ) -> Iterator[tuple[int, Rows]]:
        blocks = self._pool.take(blocks_for(len(tokens)))
        try:
            for start in range(0, len(tokens), self.model.max_batch_tokens):
                part = tuple(tokens[start : start + self.model.max_batch_tokens])
                end = start + len(part)
                outputs = min(len(part), max(0, end - first))
                chunk = Chunk(part, start, blocks[: blocks_for(end)], outputs)
                rows = run(Batch((chunk,)))
                if outputs:
                    yield end - outputs, rows
        finally:
            self._pool.give_back(blocks)

    def _check_text(self, tokens: Sequence[int]) -> None:
        self._check_tokens(tokens)
        if len(tokens) > self.max_seq_len:
            raise PromptTooLongError(len(tokens), self.max_seq_len)
        self._check_capacity(len(tokens))

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

    def _advance(
        self, plan: list[tuple[Generation, Chunk]], given: Iterable[LogitRow]
    ) -> list[Event]:
        """Note what the cache holds now, and sample where a text has been read to its end."""
        rows = iter(given)
        events = []
        for generation, chunk in plan:
            drafts = chunk.tokens[len(chunk.tokens) - max(chunk.outputs - 1, 0) :]
            generation.held.cached += len(chunk.tokens) - len(drafts)
            first = not generation.generated
            events += self._sample_rows(generation, drafts, list(islice(rows, chunk.outputs)))
            if generation.finish is None:
                self._note(generation, first=first)
        return events

    def _sample_rows(
        self, generation: Generation, drafts: tuple[int, ...], rows: list[LogitRow]
    ) -> list[Event]:
        """Sample row by row while the drafts come true: what is sampled is the text anyway.

        What the cache holds of the others is written over by the tokens that do follow.
        """
        events = []
        for row, draft in zip(rows, (*drafts, None), strict=False):
            try:
                event = self._sample(generation, row)
            except (NoTokenLeftError, StructureError) as error:
                generation.error = error  # the texts beside it go on
                self._retire(generation, FinishReason.CANCELLED)
                break
            events.append(event)
            generation.accepted += event.token == draft
            if event.finish is not None or event.token != draft:
                break
            generation.held.cached += 1
        return events

    def _sample(self, generation: Generation, row: LogitRow) -> Event:
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

    def _note(self, generation: Generation, *, first: bool) -> None:
        """Let others share what was computed; ``first`` says that the prompt is at its end."""
        self.prefixes.note(generation.held, generation.text)
        if generation.generated:
            if first:
                self.prefixes.note_part(generation.held, generation.text)
            self.prefixes.keep(generation.held, generation.text)

    def _retire(self, generation: Generation, finish: FinishReason) -> None:
        generation.finish = finish
        self._scheduler.remove(generation)
