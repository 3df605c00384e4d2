"""RoPE in Hugging Face's ``config.json``: its base, its scaling, and the context that gives.

Source of the fields: ``modeling_rope_utils.py`` of huggingface/transformers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pyrllama.errors import UnsupportedModelError
from pyrllama.model_config import DynamicRope, LinearRope, Llama3Rope, RopeScaling, YarnRope
from pyrllama.models.rope import default_attention_factor

if TYPE_CHECKING:
    from pyrllama.checkpoints.json_file import Fields

DEFAULT_THETA = 10_000.0
KINDS = ("default", "llama3", "linear", "dynamic", "yarn")
"""What can be run."""
_MOST_STRETCHED = 2.0**20
"""Factor beyond which a context is too long for any model."""


class Rope(NamedTuple):
    """The base of RoPE's frequencies, their scaling, and how many positions a model is for."""

    theta: float
    scaling: RopeScaling | None
    context_length: int


def read_rope(config: Fields, max_positions: int) -> Rope:
    """Return what the fields say, ``max_positions`` being ``max_position_embeddings``.

    Base and scaling are in ``rope_parameters`` since transformers 5; before, the base was a
    field of its own and the scaling in ``rope_scaling``, whose kind was first called ``type``.
    With linear and dynamic scaling ``max_position_embeddings`` stays that of the model before
    it was stretched, as transformers' documentation asks.

    Raises ``UnsupportedModelError`` for a kind that is not run.
    """
    key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    rope = config.fields(key)
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise UnsupportedModelError(config.path, f"{key} differs between layers")
    theta = rope.number("rope_theta", config.number("rope_theta", DEFAULT_THETA))
    kind = rope.text("rope_type", rope.text("type", "default"))
    match kind:
        case "default":
            return Rope(theta, None, max_positions)
        case "llama3":
            return Rope(theta, _llama3(rope), max_positions)
        case "linear":
            factor = rope.number("factor")
            return Rope(theta, LinearRope(factor), _stretched(max_positions, factor))
        case "dynamic":
            factor = rope.number("factor")
            scaling = DynamicRope(factor, max_positions)
            return Rope(theta, scaling, _stretched(max_positions, factor))
        case "yarn":
            yarn = _yarn(rope, max_positions)
            stretched = _stretched(yarn.original_context, yarn.factor)
            return Rope(theta, yarn, max(max_positions, stretched))
    raise UnsupportedModelError(
        config.path, f"{key} is of the type {kind}, but what can be run is {', '.join(KINDS)}"
    )


def _stretched(positions: int, factor: float) -> int:
    return max(positions, round(positions * min(factor, _MOST_STRETCHED)))


def _llama3(rope: Fields) -> Llama3Rope:
    return Llama3Rope(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_context=rope.size("original_max_position_embeddings"),
    )


def _yarn(rope: Fields, max_positions: int) -> YarnRope:
    factor = rope.number("factor")
    defaults = YarnRope(factor, 1, 1.0)
    return YarnRope(
        factor=factor,
        original_context=rope.size("original_max_position_embeddings", max_positions),
        attention_factor=_attention_factor(rope, factor),
        beta_fast=rope.number("beta_fast", defaults.beta_fast),
        beta_slow=rope.number("beta_slow", defaults.beta_slow),
        truncate=rope.flag("truncate") if rope.has("truncate") else defaults.truncate,
    )


def _attention_factor(rope: Fields, factor: float) -> float:
    """Return the factor that is stated, or that two multipliers of its logarithm give."""
    if rope.has("attention_factor"):
        return rope.number("attention_factor")
    if not (rope.values.get("mscale") and rope.values.get("mscale_all_dim")) or factor <= 1.0:
        return default_attention_factor(factor)
    over, under = (
        0.1 * rope.number(key) * math.log(factor) + 1.0 for key in ("mscale", "mscale_all_dim")
    )
    return over / under
