"""An answer as it is generated: tokens up to a stop text, over a full context if asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pyrllama.core import Completion, FinishReason, Timings, Token
from pyrllama.stop_strings import StopStrings

if TYPE_CHECKING:
    from pyrllama.token_stream import TokenStream

    Start = Callable[[Sequence[int], int | None, int], TokenStream]
    """Begins to generate: prompt, tokens at most, and how often the context was shifted."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Answer(Iterator[Token]):
    """The tokens of one answer; the last one carries the reason of the end.

    It ends as the stream that it comes from does, and also before a stop text or with one of
    ``end_ids``.
    With ``keep``, a context that is full is shifted: of the tokens behind the first ``keep``
    ones the older half is dropped, and the answer goes on.
    """

    def __init__(
        self,
        start: Start,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        end_ids: frozenset[int] = frozenset(),
        keep: int | None = None,
        on_end: Callable[[Answer], None] | None = None,
    ) -> None:
        self._start = start
        self.prompt = tuple(prompt)
        self._max_tokens = max_tokens
        self._end_ids = end_ids
        self._keep = keep
        self._on_end = on_end
        self._stops = StopStrings(stop)
        self._done: list[Completion] = []
        """The parts of the answer before each shift."""
        self._pieces: list[str] = []
        self._finish: FinishReason | None = None
        self._stream = start(self.prompt, max_tokens, 0)

    @property
    def shifts(self) -> int:
        """How often the context was shifted."""
        return len(self._done)

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._pieces)

    @property
    def ending(self) -> str | None:
        """The stop text that ended it, which is not part of it."""
        return self._stops.found

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer that the context holds now."""
        part = self._stream.completion()
        return len(part.prompt_tokens) + len(part.tokens)

    def __next__(self) -> Token:
        if self._finish is not None:
            raise StopIteration
        try:
            token = next(self._stream)
        except StopIteration:  # cancelled from elsewhere
            self.close()
            raise
        text, finish = token.text, token.finish
        if finish is None and token.id in self._end_ids:
            self._stream.close()
            finish = FinishReason.STOP
        elif finish is FinishReason.LENGTH and self._may_go_on():
            # A character that is incomplete here is completed by what follows the shift.
            text, finish = text.rstrip(_REPLACEMENT), None
            self._shift()
        text = self._stops.push(text)
        if self._stops.found is not None:
            self._stream.close()
            finish = FinishReason.STOP
        elif finish is not None:
            text += self._stops.flush()
        self._pieces.append(text)
        if finish is not None:
            self._end(finish)
        return Token(token.id, text, token.logprob, finish)

    def close(self) -> None:
        """Stop generating; what came so far stays, what was held back for a stop text too."""
        if self._finish is None:
            self._stream.close()
            self._pieces.append(self._stops.flush())
            self._end(FinishReason.CANCELLED)

    def completion(self) -> Completion:
        """Sum up what has come so far, the parts before a shift included."""
        parts = [*self._done, self._stream.completion()]
        first = parts[0]
        return dataclasses.replace(
            first,
            text=self.text,
            tokens=sum((part.tokens for part in parts), ()),
            logprobs=sum((part.logprobs for part in parts), ()),
            top=sum((part.top for part in parts), ()),
            stop_string=self._stops.found,
            complete=parts[-1].complete,
            finish=self._finish or FinishReason.CANCELLED,
            timings=_sum([part.timings for part in parts]),
        )

    def _end(self, finish: FinishReason) -> None:
        self._finish = finish
        if self._on_end is not None:
            self._on_end(self)

    def _generated(self) -> int:
        return sum(len(part.tokens) for part in (*self._done, self._stream.completion()))

    def _may_go_on(self) -> bool:
        """Tell whether it is the context that is full, and shifting it is allowed."""
        return self._keep is not None and (
            self._max_tokens is None or self._generated() < self._max_tokens
        )

    def _shift(self) -> None:
        """Go on behind the kept tokens and the newer half of the others."""
        assert self._keep is not None  # noqa: S101 - asked for by _may_go_on
        part = self._stream.completion()
        self._done.append(part)
        tokens = (*part.prompt_tokens, *part.tokens)
        kept, rest = tokens[: self._keep], tokens[self._keep :]
        left = None if self._max_tokens is None else self._max_tokens - self._generated_before()
        self._stream = self._start((*kept, *rest[len(rest) // 2 :]), left, self.shifts)

    def _generated_before(self) -> int:
        return sum(len(part.tokens) for part in self._done)


def _sum(timings: Sequence[Timings]) -> Timings:
    """Add up the timings of an answer's parts."""
    names = (field.name for field in dataclasses.fields(Timings))
    return Timings(**{name: sum(getattr(part, name) for part in timings) for name in names})
