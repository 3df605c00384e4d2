"""The nouns of the program: what a model is, what is asked of it, and what comes back.

Everything here is a frozen dataclass or an enum without behaviour of its own.  No other
module defines a noun that two rooms share.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from pyrllama.errors import SettingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    ``seed`` None takes a fresh seed for every request.
    """

    temperature: float = 1.0
    top_k: int = 20
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise SettingError("temperature", self.temperature, "a number from 0 (greedy) upwards")
        if self.top_k < 0:
            raise SettingError("top_k", self.top_k, "a whole number from 0 (off) upwards")
        if not 0.0 < self.top_p <= 1.0:
            raise SettingError("top_p", self.top_p, "a number over 0 and at most 1 (off)")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise SettingError(
                "repetition_penalty", self.repetition_penalty, "a number over 0; under 1 penalises"
            )
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise SettingError("seed", self.seed, "a whole number from 0 to 2^64-1")


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as token ids (BOS included) and what is wanted of it."""

    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    """Tokens to generate at most; None goes on to the end of the context."""


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


class FinishReason(enum.StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """The model chose an end-of-text token."""
    LENGTH = "length"
    """``max_tokens`` or the end of the context was reached."""
    CANCELLED = "cancelled"
    """The caller stopped it."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token as it streams out.

    ``text`` is what can be shown now: it may be empty while a UTF-8 character is incomplete,
    and the last event carries whatever was held back.  ``logprob`` is the natural logarithm
    of the probability with which the sampler chose it.
    """

    id: int
    text: str
    logprob: float
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a generation went; seconds."""

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    decode_seconds: float
    """Time of the tokens after the first, which the prompt's own pass yields."""

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

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


def as_dict(noun: Any) -> dict[str, Any]:
    """Turn a noun into plain dictionaries, lists and numbers, as ``--json`` prints it."""
    return dataclasses.asdict(noun)
