"""A request on its way through the engine, and what it has yielded so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyrllama.core import Timings
from pyrllama.prefix import Held

if TYPE_CHECKING:
    from pyrllama.core import CacheMiss, FinishReason, Request
    from pyrllama.errors import RllamaError
    from pyrllama.sampling import Sampler


@dataclass(slots=True, eq=False)
class Generation:
    """A request with its text, its sampler, and the blocks of the KV cache that it holds."""

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
    held: Held = field(default_factory=Held)
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    reused: int | None = None
    """Tokens of the prompt that the cache had; None before the request was admitted."""
    not_reused: CacheMiss | None = None
    """Why there were not more of them."""
    drafted: int = 0
    accepted: int = 0
    """Drafted tokens that the text has."""

    @property
    def cached(self) -> int:
        """Tokens of ``text`` whose keys and values the cache holds."""
        return self.held.cached

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
            reused_tokens=self.reused or 0,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """A token that a step sampled; ``finish`` tells that it was the generation's last one."""

    generation: Generation
    token: int
    logprob: float
    finish: FinishReason | None
