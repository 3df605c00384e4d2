"""Score a text: how probable the model finds each token after those before it.

    python examples/logprobs.py [MODEL]

Without MODEL the model that comes with the package is asked.
"""

from __future__ import annotations

import math
import sys

import numpy as np

import pyrllama

TEXT = "Once upon a time, there was a little dog named Max."


def main(model: str | None = None) -> None:
    """Print every token's log-probability, and perplexity and bits per byte of the text."""
    with pyrllama.load(model) as llama:
        tokens = llama.tokenize(TEXT)
        logits = llama.logits(tokens[:-1]).astype(np.float64)  # (tokens - 1, vocab)
        pieces = [llama.tokenizer.token_bytes(token) for token in tokens[1:]]
    logits -= logits.max(axis=1, keepdims=True)  # so that no exponential overflows
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    # Row i holds the distribution of the token behind token i.
    scores = logprobs[np.arange(len(pieces)), tokens[1:]]
    for piece, score in zip(pieces, scores, strict=True):
        print(f"{score:8.3f}  {piece.decode('utf-8', 'replace')!r}")
    bits_per_byte = -scores.sum() / math.log(2) / sum(map(len, pieces))
    print(f"perplexity {math.exp(-scores.mean()):.2f}, bits per byte {bits_per_byte:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
