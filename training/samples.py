"""Write the samples of the model card, none chosen: ``python -m training.samples [MODEL]``.

Seeds 0 to 9 at the default settings and 200 tokens at most: a story that goes on from "Once upon
a time", and answers to ten requests.
"""

from __future__ import annotations

import sys

import pyrllama
from pyrllama.data import default_model_path
from training.requests import ASSISTANT, USER

PROMPT = "Once upon a time"
REQUESTS = (
    "Tell me a story about a dog and a red ball.",
    "Tell me a story about a princess and a dragon.",
    "Tell me a story about a girl named Anna and a big tree.",
    "Write a story about a frog.",
    "Can you tell me a story about a boat and a whale?",
    "Tell me a story about a robot and a flower.",
    "Please tell me a story about a little mouse and a castle.",
    "Write a short story about a wizard and a magic hat.",
    "Tell me a story about an old bear named Max.",
    "Tell me a story.",
)
TOKENS = 200


def main() -> None:
    """Print the samples as Markdown."""
    path = sys.argv[1] if len(sys.argv) > 1 else default_model_path()
    with pyrllama.load(path) as llama:
        print(f'### After "{PROMPT}"\n')
        for seed in range(10):
            story = llama.generate(PROMPT, max_tokens=TOKENS, seed=seed)
            print(f"**Seed {seed}**\n\n{quoted(PROMPT + story.text)}\n")
        print("### Requests\n")
        for seed, request in enumerate(REQUESTS):
            turns = f"{USER}{request}{ASSISTANT}"
            prompt = llama.tokenizer.encode(turns, bos=True, special=True)
            story = llama.generate(prompt, max_tokens=TOKENS, seed=seed)
            print(f"**{request}** (seed {seed})\n\n{quoted(story.text.strip())}\n")


def quoted(text: str) -> str:
    """Return a text as a quotation in Markdown, every line of it a paragraph."""
    return "\n>\n".join(f"> {line}" for line in text.split("\n") if line)


if __name__ == "__main__":
    main()
