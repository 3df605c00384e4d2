"""What a model is: its sizes, its constants, and how its RoPE and its experts are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias


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
