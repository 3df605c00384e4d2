"""Measure what ``--lookup`` gains on texts that repeat their prompt, and costs on others.

Random weights repeat nothing, and trained ones may not be passed on.  So the stand-in for a
trained model is one whose passes are computed in full, at the real shape, and whose likeliest
token is then set to that of a text written beforehand.  The texts:

- *edit*: the answer is the prompt, with every 25th token replaced by one that it lacks;
- *quotes*: runs of 20 to 60 tokens of the prompt, with 5 to 12 random ones in between;
- *fresh*: random tokens, of which none repeats;
- *misleading*: random tokens out of 48, so that pairs return all the time and never go on alike.

Plain runs and runs with lookup take turns on one loaded model; the figures are medians.

    python bench/lookup.py model.gguf
    python bench/lookup.py model.gguf --tokens 256 --runs 5 --text fresh
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.checkpoints import open_checkpoint
from pyrllama.core import Request, Sampling
from pyrllama.engine import Engine
from pyrllama.loading import load_model
from pyrllama.lookup import PromptLookup
from pyrllama.prefix import PrefixCache
from pyrllama.speculation import Speculation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.backend import Model
    from pyrllama.core import Batch

SEED = 5
ORDINARY = 1000
"""Token ids from here on make ordinary text; those below stand for what a prompt lacks."""


def edit(random: np.random.Generator, prompt: list[int], count: int) -> list[int]:
    """Return a prompt with some tokens replaced."""
    text = prompt[:count]
    for place in range(12, len(text), 25):
        text[place] = int(random.integers(ORDINARY))
    return text


def quotes(random: np.random.Generator, prompt: list[int], count: int) -> list[int]:
    """Return runs of a prompt between tokens of its own."""
    text: list[int] = []
    while len(text) < count:
        text += random.integers(ORDINARY, size=random.integers(5, 13)).tolist()
        start = int(random.integers(len(prompt) - 60))
        text += prompt[start : start + int(random.integers(20, 61))]
    return text[:count]


def fresh(random: np.random.Generator, _prompt: list[int], count: int) -> list[int]:
    """Return random tokens."""
    return list(random.integers(ORDINARY, 30_000, size=count).tolist())


def misleading(random: np.random.Generator, prompt: list[int], count: int) -> list[int]:
    """Return tokens of the few that the prompt gets here too."""
    prompt[:] = random.integers(48, size=len(prompt)).tolist()
    return list(random.integers(48, size=count).tolist())


TEXTS = {"edit": edit, "quotes": quotes, "fresh": fresh, "misleading": misleading}


class Scripted:
    """A model that computes every pass and then finds a given text likeliest."""

    def __init__(self, model: Model, text: list[int]) -> None:
        self._model, self._text = model, text
        self.config, self.n_blocks = model.config, model.n_blocks
        self.max_batch_tokens = model.max_batch_tokens
        self.weight_bytes, self.decode_bytes = model.weight_bytes, model.decode_bytes
        self.kv_bytes_per_token = model.kv_bytes_per_token

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Compute a pass, and raise the logit of the token that the text has there."""
        logits = self._model.forward(batch)
        ends = (
            chunk.start + len(chunk.tokens) - back
            for chunk in batch.chunks
            for back in reversed(range(chunk.outputs))
        )
        for row, end in zip(logits, ends, strict=True):
            row[self._text[end] if end < len(self._text) else 0] = row.max() + 10
        return logits

    def close(self) -> None:
        """Leave the model to its owner."""


def main() -> int:
    """Measure each text and print tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=384, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=256, help="tokens to generate")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--text", choices=TEXTS, action="append")
    arguments = parser.parse_args()
    length = arguments.prompt + arguments.tokens + 1
    with open_checkpoint(arguments.model, None) as checkpoint:
        model = load_model(
            checkpoint, backend="cpu", weight_type=None, max_seq_len=length,
            threads=arguments.threads, progress=None,
        )  # fmt: skip
    for name in arguments.text or TEXTS:
        random = np.random.default_rng(SEED)
        prompt = random.integers(ORDINARY, 30_000, size=arguments.prompt).tolist()
        text = TEXTS[name](random, prompt, arguments.tokens)
        measured = [compare(model, prompt, text) for _ in range(arguments.runs)]
        plain, drafted = (median(rates) for rates in zip(*measured, strict=True))
        gain = median(after / before for before, after in measured)
        print(f"{name:>10}: {plain:6.2f} tokens/s, with lookup {drafted:6.2f}: {gain:.2f}x")
    model.close()
    return 0


def compare(model: Model, prompt: list[int], text: list[int]) -> tuple[float, float]:
    """Return tokens a second without and with lookup; the texts must be the same."""
    rates = []
    for speculation in (None, Speculation(PromptLookup())):
        scripted = Scripted(model, prompt + text)
        prefixes = PrefixCache(scripted, reuse=False)
        engine = Engine(scripted, len(prompt) + len(text) + 1, prefixes=prefixes,
                        speculation=speculation)  # fmt: skip
        generation = engine.submit(Request(tuple(prompt), Sampling(temperature=0), len(text)))
        while generation.finish is None:
            engine.step()
        if list(generation.tokens) != text:
            sys.exit("the text is not the one that was asked for")
        rates.append(generation.timings.decode_rate)
    return rates[0], rates[1]


if __name__ == "__main__":
    sys.exit(main())
