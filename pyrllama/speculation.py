"""Tokens that may follow, checked several in one step: the same text, sooner.

A drafter proposes tokens.  They go through the model behind the next token, in one pass that
reads the weights once, and give a row of logits each.  The sampler takes the rows in turn as it
would have one by one; as soon as it chooses another token than the one proposed, the rest is
dropped.  So what is sampled, by the same random numbers, is what would have been without.

A pass over several tokens costs more than one over a single token, and a wrong draft wastes the
difference.  How many tokens are worth it follows from what passes took and how many drafts came
true, and all losses together are held within a share of the time.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

PASS_SIZES = (2, 4, 6, 12, 18)
"""Tokens of a pass that checks drafts: those that kernels, which take six rows at a time, fill.
All products of so few rows have the bits of one row."""
PROFIT = 1.05
"""A draft must promise so many times the speed of a plain step."""
LOSS_SHARE = 0.03
"""Share of the time that drafts may lose."""
FIRST_LOSS = 0.5
"""Plain steps that may be lost at once, before there is a share, for each class of strength."""
MOST_CREDIT = 20.0
"""Plain steps' worth of gains that later losses may use up."""
ROW_COST = 0.25
"""The least that a row beyond the passes measured is taken to cost, in plain steps."""
FIRST_SIZES = 6
"""Tokens of the largest pass that is tried before any was measured."""
GROWTH = 2
"""A pass is at most so many times as large as one that was measured."""
KEPT_TIMES = 9
PLAIN_FIRST = 2
"""Plain steps that are measured before anything is drafted."""
FADING = 0.9
"""How much of the old experience stays with each draft."""


class Drafter(Protocol):
    """Proposes how a text goes on."""

    def look(self, text: Sequence[int]) -> int | None:
        """Return how strong a proposal would be, in classes from 0 on; None for no proposal."""
        ...

    def propose(self, text: Sequence[int], most: int) -> tuple[int, ...]:
        """Return up to ``most`` tokens that may follow ``text``."""
        ...

    def close(self) -> None:
        """Free what the drafter holds."""
        ...


class Hits:
    """How often the tokens of a kind of draft came true, with the old fading away."""

    def __init__(self, kind: int) -> None:
        # Before there is experience: the stronger the proposal, the likelier it comes true.
        self._tried = 3.0
        self._hits = self._tried * (1.0 - 0.2 / (1 + kind))

    @property
    def rate(self) -> float:
        """The share of tokens that come true where those before them did."""
        return self._hits / self._tried

    def add(self, hits: int, drafted: int) -> None:
        """Add a draft; its tokens behind the first that did not come true say nothing."""
        self._hits = FADING * self._hits + hits
        self._tried = FADING * self._tried + min(hits + 1, drafted)

    def expected(self, drafted: int) -> float:
        """Return how many tokens a step is likely to give, the sampled one included."""
        return sum(self.rate**n for n in range(drafted + 1))


class PassTimes:
    """What passes over so many tokens take: medians of the last, and guesses for the others.

    Sizes between two known ones are interpolated.  Beyond them, a row is taken to cost what it
    did so far, or ``ROW_COST`` if that is more: the first rows may be as good as free, where
    memory is the limit, and later ones are not.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}

    def add(self, n_tokens: int, seconds: float) -> None:
        """Note a pass."""
        self._times.setdefault(n_tokens, deque(maxlen=KEPT_TIMES)).append(seconds)

    def count(self, n_tokens: int) -> int:
        """Return how many passes of a size are known."""
        return len(self._times.get(n_tokens, ()))

    @property
    def largest_to_try(self) -> int:
        """The tokens of a pass whose time can be guessed well enough to try it."""
        known = (n for n, times in self._times.items() if len(times) > 1)
        return max(FIRST_SIZES, GROWTH * max(known, default=1))

    def of(self, n_tokens: int) -> float:
        """Return the seconds of a pass; one of a single token must be known.

        The first pass of a size may be slow for touching memory that no other did; it does not
        count for more than what is guessed from the others.
        """
        times = list(self._times.get(n_tokens, ()))
        if n_tokens == 1 or len(times) > 1:
            return median(times)
        return min([*times, self._guess(n_tokens)])

    def _guess(self, n_tokens: int) -> float:
        known = [n for n, times in self._times.items() if len(times) > 1 or n == 1]
        below = max(n for n in known if n < n_tokens)
        above = min((n for n in known if n > n_tokens), default=None)
        start = self.of(below)
        if above is not None:
            a_row = (self.of(above) - start) / (above - below)
        elif below > 1:
            a_row = max((start - self.of(1)) / (below - 1), ROW_COST * self.of(1))
        else:
            a_row = ROW_COST * start
        return start + (n_tokens - below) * a_row


class Speculation:
    """Decides how many tokens to draft, and learns from what became of them."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._times = PassTimes()
        self._hits: dict[int, Hits] = {}
        self._kind = 0
        self._draft_seconds = 0.0
        """What proposing one token took lately."""
        self._lost = 0.0
        """Seconds lost by drafts, less those won."""
        self._allowed = 0.0

    def draft(self, text: Sequence[int], room: int) -> tuple[int, ...]:
        """Return the tokens, at most ``room``, to check behind a text; none if it may not pay."""
        if self._times.count(1) < PLAIN_FIRST or room < 1:
            return ()
        kind = self._drafter.look(text)
        if kind is None:
            return ()
        most = self._worthwhile(kind, room)
        if most == 0:
            return ()
        started = perf_counter()
        proposed = self._drafter.propose(text, most)
        if proposed:
            self._draft_seconds = (perf_counter() - started) / len(proposed)
        self._kind = kind
        return proposed

    def record(self, seconds: float, drafted: int, given: int) -> None:
        """Note a step that drafted so many tokens, took so long, and gave so many tokens."""
        if drafted == 0:
            self._times.add(1, seconds)
            self._allowed += LOSS_SHARE * seconds
            return
        plain = self._times.of(1)
        self._times.add(1 + drafted, seconds - drafted * self._draft_seconds)
        self._hits[self._kind].add(given - 1, drafted)
        self._allowed += LOSS_SHARE * given * plain
        self._lost = max(self._lost + seconds - given * plain, -MOST_CREDIT * plain)

    def close(self) -> None:
        """Free the drafter."""
        self._drafter.close()

    def _worthwhile(self, kind: int, room: int) -> int:
        """Return how many tokens to draft for the most tokens a second."""
        hits, plain = self._hits.setdefault(kind, Hits(kind)), self._times.of(1)
        allowed = self._allowed + kind * FIRST_LOSS * plain - self._lost
        best, most = PROFIT / plain, 0
        for size in PASS_SIZES:
            if size > self._times.largest_to_try:
                break
            drafted = min(size - 1, room)
            seconds = self._times.of(1 + drafted) + drafted * self._draft_seconds
            if hits.expected(drafted) / seconds > best and seconds - plain <= allowed:
                best, most = hits.expected(drafted) / seconds, drafted
        return most
