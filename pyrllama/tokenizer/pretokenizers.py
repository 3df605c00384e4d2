r"""How a text is cut into words before byte-pair encoding, which never merges across words.

A GGUF file only names its pre-tokenizer (``tokenizer.ggml.pre``); the patterns are those of
the models' authors.  Sources: the tokenizers published with GPT-2, Llama 3, Qwen and Mistral
NeMo; the names, and which share a pattern, from llama.cpp's ``llama-vocab.cpp``.

Patterns apply one after the other, each to the parts that the one before made; what a pattern
does not match is a part of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from reprlib import repr as shown  # cuts a hostile file's endless string short
from typing import Any

from pyrllama.errors import TokenizerError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_SYMBOLS_AND_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"

_LLAMA3 = _CONTRACTIONS + _LETTERS + r"|\p{N}{1,3}" + _SYMBOLS_AND_SPACES
_QWEN2 = _CONTRACTIONS + _LETTERS + r"|\p{N}" + _SYMBOLS_AND_SPACES
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """The rules of a byte-pair tokenizer that its vocabulary does not tell."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """A word that is a token as a whole becomes that token, whatever the merges make of it."""
    add_bos: bool = False
    """Whether prompts start with BOS where the file does not say."""

    def split(self, text: str) -> list[str]:
        """Cut a text into words; together they are the text."""
        words = [text]
        for pattern in self._compiled:
            words = [part for word in words for part in pattern.split(word) if part]
        return words

    @cached_property
    def _compiled(self) -> list[Any]:
        # `re` knows no Unicode properties; this takes 40 ms.
        import regex  # type: ignore[import-untyped]  # noqa: PLC0415

        # A pattern in one group makes `split` return the matches among the gaps.
        return [regex.compile(f"({pattern})") for pattern in self.patterns]


LLAMA3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
QWEN2 = PreTokenizer((_QWEN2,))
_LLAMA3_MERGED = PreTokenizer((_LLAMA3,))
_GPT2_WORDS = PreTokenizer((_GPT2,))
_GPT2_DIGITS = PreTokenizer((_DIGIT, _GPT2))
_TEKKEN_WORDS = PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)

PRE_TOKENIZERS = {
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "lfm2", "pixtral"), LLAMA3
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3_MERGED),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "hunyuan", "megrez", "stablelm2"), QWEN2),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion"), _GPT2_WORDS),
    **dict.fromkeys(
        (
            "codeshell",
            "command-r",
            "exaone",
            "minerva-7b",
            "refact",
            "smollm",
            "starcoder",
        ),
        _GPT2_DIGITS,
    ),
    "tekken": _TEKKEN_WORDS,
}
"""The rules behind each value of ``tokenizer.ggml.pre`` that is known."""


GPT2_PATTERN = _GPT2
"""The pattern that ``tokenizer.json`` calls ByteLevel."""
DIGIT_PATTERN = _DIGIT
_WRITTEN = ("llama-bpe", "smaug-bpe", "qwen2", "gpt-2", "smollm", "tekken")
"""One name for each set of rules."""


def name_of_rules(patterns: tuple[str, ...], *, ignore_merges: bool) -> str | None:
    """Return GGUF's name for patterns that are used one after the other; None if it has none."""
    return next(
        (
            name
            for name in _WRITTEN
            if PRE_TOKENIZERS[name].patterns == patterns
            and PRE_TOKENIZERS[name].ignore_merges == ignore_merges
        ),
        None,
    )


def pre_tokenizer(name: str | None) -> PreTokenizer:
    """Return the rules of a name; raises ``TokenizerError``, for a guess would change the ids."""
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    problem = f"is {shown(name)}, which is not known" if name is not None else "is missing"
    raise TokenizerError(
        f"tokenizer.ggml.pre {problem}, so texts cannot be cut into words as the model expects; "
        f"convert the model again with a name out of {', '.join(sorted(PRE_TOKENIZERS))}"
    )
