"""Tokenizers: one class over every format in which models are published.

The formats' libraries are imported when a file of theirs is opened, not before.
"""

from pyrllama.tokenizer.base import Detokenizer, Tokenizer
from pyrllama.tokenizer.find import check_tokenizer, find_tokenizer
from pyrllama.tokenizer.gguf_vocabulary import tokenizer_from_gguf
from pyrllama.tokenizer.load import load_tokenizer

__all__ = [
    "Detokenizer",
    "Tokenizer",
    "check_tokenizer",
    "find_tokenizer",
    "load_tokenizer",
    "tokenizer_from_gguf",
]
