"""Show tokens as they come, and stop in the middle when enough has been said.

    python examples/stream.py [MODEL]

Without MODEL the model that comes with the package tells the story.
"""

from __future__ import annotations

import sys
from contextlib import closing

import pyrllama

SENTENCES = 3


def main(model: str | None = None) -> None:
    """Print a story until its third sentence ends, or after 200 tokens."""
    prompt = "One day, a little girl named Lily"
    print(prompt, end="", flush=True)
    ended = 0
    # Closing the stream gives its part of the KV cache back, however the loop ends.
    with pyrllama.load(model) as llama, closing(llama.stream(prompt, max_tokens=200)) as tokens:
        for token in tokens:
            print(token.text, end="", flush=True)
            ended += token.text.count(".")
            if ended >= SENTENCES:
                break
    print()


if __name__ == "__main__":
    main(*sys.argv[1:2])
