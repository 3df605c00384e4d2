"""Tokens of one text as they are generated, with the text that each makes clear."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyrllama.core import Completion, FinishReason, Token

if TYPE_CHECKING:
    from pyrllama.core import TopLogprobs
    from pyrllama.engine import Engine
    from pyrllama.request_maker import Asked
    from pyrllama.tokenizer import Tokenizer


class TokenStream(Iterator[Token]):
    """Tokens as they are generated; the last one carries the reason of the end.

    Closing the stream, or dropping it, cancels what is left and frees its part of the cache.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, stop_ids: frozenset[int], asked: Asked
    ) -> None:
        request = asked.request
        self._engine = engine
        self._stop_ids = stop_ids
        self._stops = asked.stops
        self._n_spelled = tokenizer.vocab_size
        self._generation = engine.submit(request)
        # What must match a grammar shows all that matches, a space at the beginning too.
        whole = request.rules.constraint is not None
        self._detokenizer = tokenizer.stream(request.tokens, keep_first_space=whole)
        self._pieces: list[str] = []
        self._finish: FinishReason | None = None
        self._cancel = weakref.finalize(self, engine.cancel, self._generation)
        self._cancel.atexit = False

    def __next__(self) -> Token:
        generation = self._generation
        given = len(self._pieces)
        if self._finish is not None:
            raise StopIteration
        while generation.generated == given:
            if generation.error is not None:
                raise generation.error
            if generation.finish is not None:
                raise StopIteration
            self._engine.step()
        token = generation.text[len(generation.request.tokens) + given]
        # Other streams' steps may have advanced this one by several tokens.
        last = given + 1 == generation.generated
        finish = generation.finish if last else None
        text = self._text_of(token, finish)
        if self._stops.found is not None:
            finish = FinishReason.STOP
            self._cancel()
        self._finish = finish
        self._pieces.append(text)
        return Token(token, text, generation.logprobs[given], finish, self._top(given))

    def _text_of(self, token: int, finish: FinishReason | None) -> str:
        """Return the text that a token makes clear: of the last one all that was held back."""
        # The embedding may be padded beyond the tokenizer's vocabulary.
        silent = token in self._stop_ids or token >= self._n_spelled
        text = "" if silent else self._detokenizer.push(token)
        if finish is not None:
            text += self._detokenizer.flush()
        if len(self._pieces) + 1 >= self._generation.request.sampling.min_tokens:
            text = self._stops.push(text)
        return text if finish is None else text + self._stops.flush()

    def _top(self, index: int) -> TopLogprobs | None:
        top = self._generation.sampler.top
        return top[index] if index < len(top) else None

    def close(self) -> None:
        """Stop generating; ``completion`` still tells what came so far."""
        self._cancel()

    def completion(self) -> Completion:
        """Sum up the tokens that the stream has given so far."""
        generation, given = self._generation, len(self._pieces)
        return Completion(
            text="".join(self._pieces),
            tokens=generation.tokens[:given],
            logprobs=tuple(generation.logprobs[:given]),
            prompt_tokens=generation.request.tokens,
            finish=self._finish or generation.finish or FinishReason.CANCELLED,
            timings=generation.timings,
            seed=generation.sampler.seed,
            not_reused=generation.not_reused,
            top=tuple(generation.sampler.top[:given]),
            stop_string=self._stops.found,
            complete=generation.sampler.complete,
        )
