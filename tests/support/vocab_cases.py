"""Texts to tokenise: the published cases of a vocabulary, and random Unicode."""

from __future__ import annotations

import random
import sys
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from pyrllama.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VOCABULARIES = ("llama-spm", "llama-bpe", "qwen2")
_SEPARATOR = "\n__ggml_vocab_test__\n"

_WORDS = (
    "Once upon a time there was a little girl named Lily who'd've said it's THEY'LL don't I'M "
    "1234567890 3.14159 2024-01-31 x=y**2 {json: [1, 2]} <s> </s> <|eot_id|> <0x0A> [INST] "
    "naïve Straße Ελληνικά кириллица العربية עברית हिन्दी ไทย 日本語 中文字 한국어 '\u017fabc ÅA̐é"
).split()
_SPACES = (
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n ",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\x85",
)
_SEQUENCES = (
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "👍🏽",
    "🇩🇪🇫🇷",
    "e\u0301\u0302\u0303",
    "\u2581",
    "\u2581\u2581",
    "\ufffd",
    "\ufeff",
    "\x00",
    "\x1c\x1f\x7f",
    "\u200b\u200d\u2060",
)


@cache
def tokenizer_at(path: Path) -> Tokenizer:
    """Load a tokenizer once for all tests; it does not change."""
    return load_tokenizer(path)


def published_cases(data: Path, vocabulary: str) -> list[tuple[str, list[int]]]:
    """Return the texts of a vocabulary in ``data/vocab`` with their ids, BOS left out."""
    stem = f"ggml-vocab-{vocabulary}.gguf"
    texts = (data / "vocab" / f"{stem}.inp").read_text(encoding="utf-8").split(_SEPARATOR)
    lines = (data / "vocab" / f"{stem}.out").read_text(encoding="utf-8").split("\n")
    cases = [
        (text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)
    ]
    return cases[:-1]  # Both files end with a separator, behind which there is no case.


def random_texts(seed: int, count: int, *, assigned: bool = False) -> list[str]:
    """Return texts that mix words, spaces, sequences and code points of every plane.

    With ``assigned`` the code points are those that have had a category for long, which
    libraries with other versions of Unicode agree on.
    """
    draw = random.Random(seed)
    kinds: list[Callable[[], str]] = [
        lambda: draw.choice(_WORDS),
        lambda: draw.choice(_SPACES),
        lambda: draw.choice(_SEQUENCES),
        lambda: _code_point(draw, sys.maxunicode, assigned),
        lambda: _code_point(draw, 0x3FF, assigned),
        lambda: chr(draw.randrange(128)) * draw.randrange(1, 9),
    ]
    return [
        "".join(draw.choice(kinds)() for _ in range(draw.randrange(1, 40))) for _ in range(count)
    ]


def _code_point(draw: random.Random, last: int, assigned: bool) -> str:
    """Return any character but a surrogate."""
    while True:
        character = chr(draw.randrange(last + 1))
        category = unicodedata.category(character)
        if category != "Cs" and not (assigned and category == "Cn"):
            return character
