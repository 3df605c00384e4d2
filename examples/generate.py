"""Continue a prompt and say what it took.

    python examples/generate.py [MODEL]

Without MODEL the model that comes with the package tells the story.
"""

from __future__ import annotations

import sys

import pyrllama

PROMPT = "Once upon a time"


def main(model: str | None = None) -> None:
    """Generate up to 80 tokens with settings that reproduce them exactly."""
    with pyrllama.load(model) as llama:
        story = llama.generate(PROMPT, max_tokens=80, temperature=0.7, top_p=0.9, seed=1)
    print(PROMPT + story.text)
    print()
    timings = story.timings
    print(f"{len(story.tokens)} tokens, ended by {story.finish}, seed {story.seed}")
    print(f"prompt {timings.prompt_rate:.0f} tokens/s, then {timings.decode_rate:.0f} tokens/s")


if __name__ == "__main__":
    main(*sys.argv[1:2])
