"""Choose tokens by a rule of your own: here min-p (Nguyen et al., arXiv 2407.01082).

    python examples/own_sampler.py [MODEL]

Without MODEL the model that comes with the package tells the story.  ``Llama.logits`` reads
the whole text at each call: simple, and fast enough for a small model or a short text.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

import pyrllama

if TYPE_CHECKING:
    from numpy.typing import NDArray


def min_p(logits: NDArray[np.float32], share: float, random: np.random.Generator) -> int:
    """Draw among the tokens that are at least ``share`` as probable as the likeliest one."""
    probabilities = np.exp(logits.astype(np.float64) - logits.max())  # the likeliest has 1
    probabilities[probabilities < share] = 0.0
    return int(random.choice(logits.size, p=probabilities / probabilities.sum()))


def main(model: str | None = None) -> None:
    """Print a prompt and what ``min_p`` chose after it, 60 tokens in all."""
    random = np.random.default_rng(seed=1)
    with pyrllama.load(model) as llama:
        tokens = llama.tokenize("Tom and his dog went to the park.")
        while len(tokens) < 60:
            token = min_p(llama.logits(tokens)[-1], 0.1, random)
            if token in llama.tokenizer.stop_ids:
                break
            tokens.append(token)
        print(llama.detokenize(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:2])
