"""LLaMA-family language models, from the checkpoint to the text.

>>> import pyrllama
>>> llama = pyrllama.load("model.gguf")              # doctest: +SKIP
>>> llama.generate("Once upon a time").text          # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrllama.core import CacheMiss, Completion, FinishReason, Sampling, Timings, Token, TopLogprobs
from pyrllama.errors import RllamaError
from pyrllama.model_config import ModelConfig

if TYPE_CHECKING:
    from pyrllama.asynchronous import AsyncLlama
    from pyrllama.llama import Llama, load
    from pyrllama.perplexity import Perplexity

__version__ = "0.1.0"

__all__ = [
    "AsyncLlama",
    "CacheMiss",
    "Completion",
    "FinishReason",
    "Llama",
    "ModelConfig",
    "Perplexity",
    "RllamaError",
    "Sampling",
    "Timings",
    "Token",
    "TopLogprobs",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import what needs NumPy and the readers only when it is asked for."""
    if name in {"Llama", "Perplexity", "load"}:
        from pyrllama import llama  # noqa: PLC0415

        return getattr(llama, name)
    if name == "AsyncLlama":
        from pyrllama.asynchronous import AsyncLlama  # noqa: PLC0415

        return AsyncLlama
    raise AttributeError(f"module 'pyrllama' has no attribute {name!r}")
