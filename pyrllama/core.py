"""The nouns of a generation: what is asked of a model, what it computes, and what comes back.

Everything here is a frozen dataclass or an enum without behaviour of its own, and how many tokens
a block of the KV cache is.  What a model is made of has the same form in ``model_config.py`` and
``tensors.py``; no other module defines a noun that two rooms share.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pyrllama.errors import SettingError
from pyrllama.sampling_ranges import SAMPLING_RANGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    LogitRow: TypeAlias = "NDArray[np.float32] | TopLogits"
    """What is known of the logits behind a token: all, ``(vocab,)``, or the greatest."""

MOST_TOP_LOGITS = 256
"""Where more of a row's greatest logits are wanted, the whole row is."""
BLOCK_TOKENS = 32
"""Tokens whose keys and values one block of the KV cache holds."""


def blocks_for(n_tokens: int) -> int:
    """Return how many blocks hold the keys and values of ``n_tokens`` tokens."""
    return -(-n_tokens // BLOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen from the logits; ``pyrllama.sampling`` documents the order.

    ``temperature`` 0 is greedy.  ``top_k`` 0 and ``top_p`` 1 switch the filters off.
    ``repetition_penalty`` is the original RLLaMA's: under 1.0 penalises, 1.0 is off.
    ``seed`` None takes a fresh seed for every request.  What follows is off by default:
    ``docs/sampling.md`` has a table of it.  Raises ``SettingError`` for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 20
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    repeat_penalty: float = 1.0
    """llama.cpp's: over 1.0 penalises."""
    repeat_last_n: int = 64
    """Tokens that the repeat, presence and frequency penalties look at; -1 is all."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    top_n_sigma: float = 0.0
    typical_p: float = 1.0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token's id and what is added to its logit."""
    banned_tokens: tuple[int, ...] = ()
    samplers: tuple[str, ...] | None = None
    """The stages in their order; None is that of ``SamplerStage``."""
    min_tokens: int = 0
    """Tokens before which a text does not end by itself."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (holds, allowed) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            try:
                valid = holds(value)
            except (TypeError, ValueError):
                valid = False
            if not valid:
                raise SettingError(name, value, allowed)


class TokenMatcher(Protocol):
    """How far one text has come in what it must match; a position that moves with its tokens."""

    @property
    def complete(self) -> bool:
        """Whether the text so far is a whole match."""
        ...

    def allowed(self, n_logits: int) -> NDArray[np.bool_]:
        """Return which tokens may come next, ``(n_logits,)``; ids that end a text may too."""
        ...

    def accept(self, token: int) -> None:
        """Move on by a token that was allowed."""
        ...


class TokenConstraint(Protocol):
    """What texts must match, over the tokens of one vocabulary; many texts can share it."""

    def start(self) -> TokenMatcher:
        """Return the position before the first token."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What of the choice of tokens depends on the model's vocabulary, or on it alone."""

    stop_ids: frozenset[int] = frozenset()
    """Tokens that end a text."""
    dry_breakers: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens over which DRY sees no repetition."""
    constraint: TokenConstraint | None = None
    top_logprobs: int = 0
    """How many of the likeliest tokens to report of each choice."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as token ids (BOS included) and what is wanted of it."""

    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    """Tokens to generate at most; None goes on to the end of the context."""
    rules: TokenRules = field(default_factory=TokenRules)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence that go through the model in one step.

    ``start`` is the position of the first one, that is, how many tokens of the sequence the
    cache already holds.  ``blocks`` names the cache blocks of the sequence in order, enough
    for ``start + len(tokens)`` positions.  Logits are wanted of the last ``outputs`` tokens.
    """

    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    outputs: int = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass computes: prompt chunks and one-token decodes side by side."""

    chunks: tuple[Chunk, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all chunks together."""
        return sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def n_outputs(self) -> int:
        """Rows of logits that the pass returns."""
        return sum(chunk.outputs for chunk in self.chunks)


@dataclass(frozen=True, slots=True, eq=False)
class TopLogits:
    """The greatest logits of one row, where no other token can be chosen from it."""

    logits: NDArray[np.float32]
    """The greatest first, ``(k,)``; all are finite but for minus infinity."""
    ids: NDArray[np.int64]
    """Their tokens, ``(k,)``; between equal logits the lower one comes first."""
    mass: float
    """Sum of ``e^(x - greatest)`` over the whole row."""


@dataclass(frozen=True, slots=True, eq=False)
class InputSquares:
    """Sums of the squares of what a model's matrices multiply, which every pass adds to.

    Both are by the names of matrices; ``tokens`` has those of experts alone.
    """

    sums: Mapping[str, NDArray[np.float64]]
    """Column by column, ``(cols,)``, of experts ``(experts, cols)``."""
    tokens: Mapping[str, NDArray[np.int64]]
    """How many tokens chose each expert, ``(experts,)``."""


class CacheMiss(enum.StrEnum):
    """Why the keys and values of a prompt, or of its rest, had to be computed."""

    NEW = "no earlier text begins like it"
    DIFFERS = "no earlier text goes on like that"
    EVICTED = "the cache needed the blocks for other requests"
    OFF = "reuse is switched off"


class FinishReason(enum.StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """The model chose an end-of-text token, or a stop string came."""
    LENGTH = "length"
    """``max_tokens`` or the end of the context was reached."""
    CANCELLED = "cancelled"
    """The caller stopped it."""


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The likeliest tokens in the model's own eyes: before any stage, at temperature 1."""

    chosen: float
    """Natural logarithm of the probability of the token that was chosen."""
    tokens: tuple[int, ...]
    """The likeliest first."""
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token as it streams out.

    ``text`` is what can be shown now: it may be empty while a UTF-8 character is incomplete or
    a stop string may be coming, and the last event carries whatever was held back.
    ``logprob`` is the natural logarithm of the probability with which the sampler chose it.
    """

    id: int
    text: str
    logprob: float
    finish: FinishReason | None = None
    top: TopLogprobs | None = None
    """What came second and so on, where that was asked for."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a generation went; seconds."""

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    decode_seconds: float
    """Time of the tokens after the first, which the prompt's own pass yields."""
    reused_tokens: int = 0
    """Tokens of the prompt whose keys and values were in the cache, in memory or on disk."""
    drafted_tokens: int = 0
    """Tokens that speculation proposed."""
    accepted_tokens: int = 0
    """Those of them that the text has."""

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens computed per second."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Generated tokens per second, the first one apart."""
        decoded = self.generated_tokens - 1
        return decoded / self.decode_seconds if decoded > 0 and self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation; ``text`` is the continuation without the prompt."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    finish: FinishReason
    timings: Timings
    seed: int
    """The seed that reproduces it, also when none was given."""
    not_reused: CacheMiss | None = None
    """Why more of the prompt was not reused; None where only its last token was computed."""
    top: tuple[TopLogprobs, ...] = ()
    """For each token the likeliest ones, where that was asked for."""
    stop_string: str | None = None
    """The stop string that ended it, which is not in the text."""
    complete: bool = True
    """False where a limit cut a text off before it matched its schema or grammar."""


def as_dict(noun: Any) -> dict[str, Any]:
    """Turn a noun into plain dictionaries, lists and numbers, as ``--json`` prints it."""
    return dataclasses.asdict(noun)
