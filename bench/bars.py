"""The bars: what ratio to which rival is wanted of a work on a model."""

from __future__ import annotations

from dataclasses import dataclass

from works import Kind, Work


@dataclass(frozen=True, slots=True)
class Bar:
    """Wanted ratios of our figure to llama.cpp's, and to the best rival's; None wants nothing.

    Where less is better the ratio must be at most this, else at least.
    """

    llama_cpp: float | None = None
    best: float | None = None


QUANTISED = ("q8_0", "q4_0")
HALVES = ("f16", "bf16")
SUPER_BLOCKS = ("q4_k_m", "q5_k_m", "q6_k", "iq4_xs")


def bar_of(model: str, work: Work) -> Bar | None:
    """Return the bar for a model such as ``1b-q4_0``, None where there is none."""
    shape, _, weights = model.partition("-")
    match shape, weights, work:
        case (("1b" | "7b"), _, Work(Kind.PREFILL)) if weights in SUPER_BLOCKS:
            return Bar(llama_cpp=2.0)
        case "1b", _, Work(Kind.PREFILL, 512):
            return Bar(llama_cpp=2.5, best=1.2) if weights in QUANTISED else Bar(best=1.2)
        case "7b", _, Work(Kind.PREFILL, 128) if weights in QUANTISED:
            return Bar(llama_cpp=2.5)
        case (("1b" | "7b"), _, Work(Kind.DECODE)) if weights in SUPER_BLOCKS:
            return Bar(llama_cpp=1.05)
        case (("1b" | "7b"), _, Work(Kind.DECODE)) if weights in HALVES:
            return Bar(llama_cpp=1.3)
        case "1b", _, Work(Kind.DECODE):
            return Bar(llama_cpp=1.2)
        case "7b", _, Work(Kind.DECODE):
            return Bar(llama_cpp=1.1)
        case "110m", _, Work(Kind.DECODE) if weights in QUANTISED:
            return Bar(llama_cpp=1.3)
        case "1b", "q4_0", Work(Kind.DEPTH, 8192):
            return Bar(llama_cpp=1.3)
        case "1b", "q4_0", Work(Kind.SEQUENCES, 8):
            return Bar(llama_cpp=1.5)
        case "1b", "q4_0", Work(Kind.START):
            return Bar(llama_cpp=1.2)
        case "7b", "q4_0", Work(Kind.START):
            return Bar(llama_cpp=0.5)
        case (("1b" | "7b"), "q4_0", Work(Kind.MEMORY)):
            return Bar(llama_cpp=0.65)
        case _:
            return None
