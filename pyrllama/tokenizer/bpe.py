"""Byte-pair encoding over bytes: the tokenizers of Llama 3, Qwen and GPT-2's other heirs.

One implementation serves vocabularies that order their merges by token (tiktoken's files) and
those that list them (GGUF).  Why not a library: ``tiktoken`` cannot follow listed merges, and
on a broken vocabulary it fails with a panic, which is no ``Exception``; ``tokenizers`` takes
0.8 s to turn the 280,000 merges of Llama 3 into its tables, which here are one dictionary made
in 0.1 s.  The tests compare the ids with those of both.
"""

from __future__ import annotations

import heapq
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.base import Tokenizer
from pyrllama.tokenizer.byte_alphabet import spell, unspell
from pyrllama.tokenizer.special import SpecialTokens, stop_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pyrllama.tokenizer.pretokenizers import PreTokenizer

_CACHED_WORDS = 1 << 16
_LONGEST_CACHED = 64
"""Characters of a word that is worth remembering; longer ones hardly come twice."""


class PairRank(Protocol):
    """Which merge goes first: the lower rank; None for a pair that does not merge."""

    def __call__(self, left: str, right: str, /) -> int | None:
        """Return the rank of the two neighbours."""


class BytePairTokenizer(Tokenizer):
    """A byte-level vocabulary; its words are spelled in GPT-2's byte alphabet."""

    def __init__(
        self,
        tokens: Mapping[str, int],
        pair_rank: PairRank,
        rules: PreTokenizer,
        *,
        control: Mapping[str, int],
        user_defined: Mapping[str, int],
        vocab_size: int,
        kind: str,
        bos_id: int | None,
        eos_id: int | None,
        end_ids: Iterable[int] = (),
        add_bos: bool,
    ) -> None:
        """Take the ids of tokens spelled in bytes, and of special ones in their plain spelling.

        ``control`` tokens are recognised in a text on demand, ``user_defined`` ones always;
        ``tokens`` may hold both as well.
        """
        self._ids = tokens
        self._pair_rank = pair_rank
        self._rules = rules
        self.control = control
        self._always = SpecialTokens(user_defined)
        self._special = SpecialTokens({**user_defined, **control})
        self._silent = frozenset(control.values())
        self._words = {token: word for word, token in tokens.items()}
        self._plain = {token: word for word, token in user_defined.items()}
        self._cached = lru_cache(_CACHED_WORDS)(self._word_ids)
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.stop_ids = stop_ids({**user_defined, **control}, (eos_id, *end_ids))
        self.add_bos = add_bos and bos_id is not None
        self.kind = kind

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        for part in (self._special if special else self._always).split(text):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in self._rules.split(part):
                ids += self._cached(word) if len(word) <= _LONGEST_CACHED else self._word_ids(word)
        return ids

    def _token_bytes(self, token: int) -> bytes:
        if token in self._silent:
            return b""
        if token in self._plain:
            return self._plain[token].encode()
        return unspell(self._words.get(token, ""))

    def _word_ids(self, word: str) -> list[int]:
        spelled = spell(word.encode())
        whole = self._ids.get(spelled) if self._rules.ignore_merges else None
        if whole is not None and whole not in self._silent:
            return [whole]
        parts = merge(list(spelled), self._pair_rank)
        try:
            return [self._ids[part] for part in parts]
        except KeyError as error:
            byte = unspell(error.args[0])[0]
            raise TokenizerError(
                f"the vocabulary has no token for the byte 0x{byte:02X} of {word!r}; leave the "
                f"character out of the text"
            ) from None


def merge(parts: list[str], pair_rank: PairRank) -> list[str]:
    """Merge neighbours, always the pair of the lowest rank and of these the leftmost.

    A heap keeps the time at n log n in the length of the word, which a text without spaces
    can make as long as it likes.
    """
    end = len(parts)
    following = list(range(1, end + 1))
    preceding = list(range(-1, end - 1))
    heap: list[tuple[int, int, str, str]] = []  # rank, where the left part stands, both parts

    def consider(left: int) -> None:
        right = following[left]
        if right < end and (rank := pair_rank(parts[left], parts[right])) is not None:
            heapq.heappush(heap, (rank, left, parts[left], parts[right]))

    for left in range(end):
        consider(left)
    while heap:
        _, left, left_part, right_part = heapq.heappop(heap)
        right = following[left]
        if right >= end or parts[left] != left_part or parts[right] != right_part:
            continue  # One of the two has merged with another part meanwhile.
        parts[left] += parts[right]
        parts[right] = ""
        following[left] = following[right]
        if following[left] < end:
            preceding[following[left]] = left
        if preceding[left] >= 0:
            consider(preceding[left])
        consider(left)
    return [part for part in parts if part]
