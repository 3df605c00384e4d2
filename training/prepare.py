"""Make the tokenizer and the token arrays that training reads.

``python -m training.prepare TEXT OUT`` writes ``OUT/tokenizer.model`` and ``OUT/corpus.npz``
with ``train`` and ``held`` (token ids, uint16) and ``held_bytes``, and ``OUT/program.npz`` with
``train``, the program's stories.  The text is UTF-8 with a
line ``<|endoftext|>`` between stories.  Every pass over the stories is another draw: the order,
which stories become an answer in a chat, and which exchange their names and things.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import sentencepiece

from training.program import tell
from training.requests import ASSISTANT, USER, Names, exchange_things, request

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEPARATOR = "<|endoftext|>"
VOCAB_SIZE = 2048
SEED = 20_260_101
PASSES = 6
PROGRAM_STORIES = 80_000
HELD_EVERY = 40
"""One story of so many is held out, among those of ``SHORT`` characters at most."""
SHORT = 3_000
ANSWER = 1_600
"""Characters of the longest story that becomes an answer: with its request, one context."""


def main() -> None:
    """Read the text, write tokenizer and arrays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    stories = read_stories(arguments.text)
    held = [story for story in stories if len(story) <= SHORT][::HELD_EVERY]
    kept = [story for story in stories if story not in set(held)]
    model = train_tokenizer(kept)
    (arguments.out / "tokenizer.model").write_bytes(model)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    corpus = Corpus(kept, tokenizer)
    passes = [corpus.draw(seeded(SEED + number)) for number in range(PASSES)]
    plain = join([[story] for story in held], tokenizer)
    np.savez_compressed(
        arguments.out / "corpus.npz",
        train=np.concatenate(passes),
        held=plain,
        held_bytes=sum(len(story.encode()) for story in held),
    )
    program = join(program_stories(seeded(SEED)), tokenizer)
    np.savez_compressed(arguments.out / "program.npz", train=program)
    sizes = [len(tokens) for tokens in passes]
    print(f"{len(kept)} stories, {sizes} tokens; {len(held)} held out, {len(plain)} tokens")
    print(f"{len(program)} tokens by the program")


def seeded(seed: int) -> Random:
    """Return a generator of numbers that are the same every time."""
    return Random(seed)  # noqa: S311 - nothing here is secret


def read_stories(path: Path) -> list[str]:
    """Return the stories, each once."""
    stories = (part.strip() for part in path.read_text(encoding="utf-8").split(SEPARATOR))
    return list(dict.fromkeys(story for story in stories if story))


def train_tokenizer(stories: list[str]) -> bytes:
    """Train a SentencePiece BPE model; bytes stand for rare characters and line ends."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for story in stories for line in story.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        max_sentence_length=1 << 20,
        control_symbols=[USER, ASSISTANT],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def program_stories(random: Random) -> list[list[str]]:
    """Return stories by the program, most of them behind the request that they answer."""
    told = (tell(random) for _ in range(PROGRAM_STORIES))
    return [list(turns) if random.random() < 0.75 else [turns[1]] for turns in told]


class Corpus:
    """The stories, to be drawn in ever other forms."""

    def __init__(self, stories: list[str], tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        self._stories = stories
        self._names = Names(stories)
        self._tokenizer = tokenizer

    def draw(self, random: Random) -> NDArray[np.uint16]:
        """Return one pass over all stories as a stream of token ids."""
        order = random.sample(self._stories, len(self._stories))
        return join([self._turns(story, random) for story in order], self._tokenizer)

    def _turns(self, story: str, random: Random) -> list[str]:
        """Return a story alone, or behind the request that it answers."""
        if random.random() < 0.5:
            story = self._names.exchange(story, random)
        if len(story) > ANSWER or random.random() < 0.6:
            return [story]
        if random.random() < 0.5:
            story = exchange_things(story, random)
        return [request(story, random), story]


def join(
    documents: list[list[str]], tokenizer: sentencepiece.SentencePieceProcessor
) -> NDArray[np.uint16]:
    """Return BOS, a text, EOS for every document; two texts are the turns of a chat."""
    user, assistant = tokenizer.piece_to_id(USER), tokenizer.piece_to_id(ASSISTANT)
    bos, eos = tokenizer.bos_id(), tokenizer.eos_id()
    encoded = iter(tokenizer.encode([text for texts in documents for text in texts]))
    stream: list[int] = []
    for texts in documents:
        if len(texts) == 1:
            stream += [bos, *next(encoded), eos]
        else:
            stream += [bos, user, *next(encoded), assistant, *next(encoded), eos]
    return np.array(stream, dtype=np.uint16)


if __name__ == "__main__":
    main()
