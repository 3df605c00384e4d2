"""The nouns of the program: what a model is, what is asked of it, and what comes back.

Everything here is a frozen dataclass or an enum without behaviour of its own.  No other
module defines a noun that two rooms share.
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


class TensorType(enum.IntEnum):
    """How the numbers of a tensor are stored; the codes are GGUF's (``ggml_type``)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """Llama 3.1's stretching of the RoPE frequencies: slow ones are slower, fast ones stay.

    Source: ``apply_scaling`` in Meta's reference code for Llama 3.1.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    kind: str = field(default="llama3", init=False)


@dataclass(frozen=True, slots=True)
class LinearRope:
    """All RoPE frequencies divided by a factor: positions are interpolated.

    Source: Chen et al., arXiv 2306.15595.
    """

    factor: float
    kind: str = field(default="linear", init=False)


@dataclass(frozen=True, slots=True)
class DynamicRope:
    """RoPE's base grows with the context beyond the original one ("dynamic NTK").

    Source: ``_compute_dynamic_ntk_parameters`` of huggingface/transformers.
    """

    factor: float
    original_context: int
    kind: str = field(default="dynamic", init=False)


@dataclass(frozen=True, slots=True)
class YarnRope:
    """Slow pairs interpolated, fast ones kept, and a ramp between, by turns of a pair (YaRN).

    ``beta_fast`` and ``beta_slow`` are the turns over the original context where the ramp
    begins and ends, on whole pairs if ``truncate``.  Cosines and sines are multiplied by
    ``attention_factor``.  Source: Peng et al., arXiv 2309.00071.
    """

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    kind: str = field(default="yarn", init=False)


RopeScaling: TypeAlias = Llama3Rope | LinearRope | DynamicRope | YarnRope
"""How the RoPE frequencies of a model differ from ``theta^(-2i / head_dim)``."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts that the feed-forward networks of a model are made of.

    A token takes the ``used`` ones to which the router gives the greatest probabilities, which
    weigh their results; ``normalised`` makes the weights sum up to 1.
    Source: Jiang et al., arXiv 2401.04088.
    """

    count: int
    used: int
    normalised: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape and the constants of a LLaMA-family model; all sizes count elements.

    ``ffn_dim`` is the inner size of a feed-forward network, of each one where there are
    experts.  The defaults of the rest are what LLaMA is.
    """

    architecture: str
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    norm_eps: float
    rope_theta: float
    context_length: int
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    """Positions that a token attends to, its own included; None attends to all before it."""
    attention_bias: bool = False
    """Whether queries, keys and values have a bias."""
    qk_norm: bool = False
    """Whether each head of queries and keys is normalised before RoPE."""
    experts: Experts | None = None

    @property
    def q_dim(self) -> int:
        """Rows of the query projection."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of the key (and of the value) projection."""
        return self.n_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a checkpoint says of one tensor: GGUF's name for it, its shape and its type.

    ``shape`` is in NumPy's order: a matrix is ``(rows, cols)``, a row for every output, and the
    matrices of experts are one tensor, ``(experts, rows, cols)``.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's stored bytes: ``data`` is ``(rows, bytes per row)`` uint8, C-contiguous.

    A vector is one row; the matrices of experts follow each other.  ``data`` may be a view of a
    mapped file and is read-only then.
    """

    info: TensorInfo
    data: NDArray[np.uint8]


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
