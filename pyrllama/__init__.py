"""LLaMA-family language models, from the checkpoint to the text.

>>> import pyrllama
>>> llama = pyrllama.load("model.gguf")              # doctest: +SKIP
>>> llama.generate("Once upon a time").text          # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyrllama.core import CacheMiss, Completion, FinishReason, Sampling, Timings, Token, TopLogprobs
from pyrllama.errors import RllamaError
from pyrllama.model_config import ModelConfig

if TYPE_CHECKING:
    from pyrllama.asynchronous import AsyncLlama
    from pyrllama.llama import Llama
    from pyrllama.load_llama import load
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

_LATER = {
    "AsyncLlama": "asynchronous",
    "Llama": "llama",
    "Perplexity": "perplexity",
    "load": "load_llama",
}
"""The modules of what needs NumPy and the readers, which are imported when it is asked for."""


def __getattr__(name: str) -> Any:
    """Import a name of the API from its module."""
    if name not in _LATER:
        raise AttributeError(f"module 'pyrllama' has no attribute {name!r}")
    return getattr(import_module(f"pyrllama.{_LATER[name]}"), name)
