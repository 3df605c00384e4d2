"""Chat turns for stories: what a story is about, and how someone would ask for it.

All text here but the stories themselves is made by this program.  ``vary`` also exchanges
names and things in a story, so that the model must look at the request, and at the story so
far, instead of knowing the story by heart.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from training.things import BOYS, GIRLS, NOUNS, QUALITIES, SWAPPED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

USER, ASSISTANT = "<|user|>", "<|assistant|>"
"""Control tokens that open a turn; an assistant's turn ends with EOS."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}"
    "<|assistant|>{{ message['content'] | trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

FORMS = (
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Please tell me a story about {}.",
    "Can you tell me a story about {}?",
    "Write a story about {}.",
    "Write a short story about {}.",
    "I want a story about {}.",
    "A story about {}, please.",
)
ANY = ("Tell me a story.", "Please tell me a story.", "Can you tell me a story?")

_WORD = re.compile(r"[A-Za-z]+")
_NAMED = re.compile(r"\b([a-z]+) (?:named|called) ([A-Z][a-z]+)\b")
_DESCRIBED = re.compile(rf"\b({'|'.join(QUALITIES)}) ([a-z]+)\b")
_FIRST_WORDS = 60
"""Where a story says what it is about."""


def request(story: str, random: Random) -> str:
    """Return how someone might have asked for this story."""
    about = subjects(story)
    if not about or random.random() < 0.08:
        return random.choice(ANY)
    count = min(len(about), random.choice((1, 2, 2, 2, 3)))
    # The likeliest subject is always named, the others are drawn from what comes next.
    chosen = about[:1] + random.sample(about[1:5], min(count - 1, len(about[1:5])))
    phrases = [phrase(noun, story, random) for noun in chosen]
    listed = (
        " and ".join(phrases)
        if len(phrases) < 3
        else f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
    )
    return random.choice(FORMS).format(listed)


def subjects(story: str) -> list[str]:
    """Return the things that a story is about, the likeliest first.

    A thing counts that is named twice, or among the first words.
    """
    words = [word.lower() for word in _WORD.findall(story)]
    first = set(words[:_FIRST_WORDS])
    counts = Counter(word for word in words if word in NOUNS)
    weights = {n: c + 3 * (n in first) for n, c in counts.items() if c > 1 or n in first}
    return sorted(weights, key=lambda noun: -weights[noun])


def phrase(noun: str, story: str, random: Random) -> str:
    """Return a noun with its article, and the quality or the name that the story gives it."""
    qualities = [quality for quality, of in _DESCRIBED.findall(story) if of == noun]
    words = f"{qualities[0]} {noun}" if qualities and random.random() < 0.6 else noun
    names = [name for of, name in _NAMED.findall(story) if of == noun]
    named = f" named {names[0]}" if names and random.random() < 0.4 else ""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}{named}"


class Names:
    """Draws names as often as the stories have them, so that their frequencies stay."""

    def __init__(self, stories: Sequence[str]) -> None:
        counts = Counter(word for story in stories for word in _WORD.findall(story))
        self._kinds = [(kind, [counts[name] + 8 for name in kind]) for kind in (GIRLS, BOYS)]

    def exchange(self, story: str, random: Random) -> str:
        """Give every known name of a story another one of its kind."""
        present = set(_WORD.findall(story))
        swaps: dict[str, str] = {}
        for kind, weights in self._kinds:
            for name in kind:
                if name in present:
                    new = random.choices(kind, weights)[0]
                    if new not in present and new not in swaps.values():
                        swaps[name] = new
        return replace(story, swaps)


def exchange_things(story: str, random: Random) -> str:
    """Give the first subject of a story, another one, or a colour, the place of one of its group.

    Only words with the same article take each other's place.
    """
    words = set(_WORD.findall(story.lower()))
    swaps: dict[str, str] = {}
    for group in SWAPPED:
        present = [word for word in group if word in words]
        if present and random.random() < 0.5:
            old = max(present, key=lambda word: (story.lower().count(word), word))
            vowel = old[0] in "aeiou"
            fitting = [w for w in group if w not in words and (w[0] in "aeiou") == vowel]
            if fitting:
                swaps[old] = random.choice(fitting)
    plural = {old + "s": new + "s" for old, new in swaps.items()}
    capital = {old.capitalize(): new.capitalize() for old, new in (swaps | plural).items()}
    return replace(story, swaps | plural | capital)


def replace(story: str, swaps: Mapping[str, str]) -> str:
    """Replace whole words, all at once."""
    if not swaps:
        return story
    return re.sub(rf"\b(?:{'|'.join(swaps)})\b", lambda found: swaps[found.group()], story)
