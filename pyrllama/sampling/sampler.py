"""One text's choices: its settings, its generator, and what it has said."""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import TokenRules, TopLogits, TopLogprobs
from pyrllama.errors import BackendError
from pyrllama.sampling.barred import Bars
from pyrllama.sampling.candidates import Candidates
from pyrllama.sampling.chain import is_greedy, make_chain
from pyrllama.sampling.history import History
from pyrllama.sampling.mirostat import Mirostat
from pyrllama.sampling.reach import Reach
from pyrllama.sampling.selection import largest, pick, run_sums, softmax_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.core import Sampling
    from pyrllama.sampling.selection import Row

SEED_BITS = 32
"""Size of a fresh seed: one that can be typed."""
NO_RULES = TokenRules()


class Sampler:
    """Chooses the tokens of one text, ``sample`` and ``accept`` in turn.

    The same settings, prompt, rules, seed and rows give the same tokens.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], rules: TokenRules = NO_RULES
    ) -> None:
        self.sampling = sampling
        self.seed = secrets.randbits(SEED_BITS) if sampling.seed is None else sampling.seed
        """What reproduces the text, also when no seed was asked for."""
        self.top: list[TopLogprobs] = []
        """The likeliest tokens of each choice that was accepted, if the rules ask for them."""
        self._rules = rules
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._text = History(prompt)
        self._n_generated = 0
        self._bars = Bars(sampling, rules)
        self._reach = Reach(sampling, rules)
        self._chain = make_chain(sampling, rules, self._text, self._random)
        self._greedy = is_greedy(sampling)
        self._matcher = rules.constraint.start() if rules.constraint else None
        self._mirostat = (
            Mirostat(sampling.mirostat_tau, sampling.mirostat_eta)
            if sampling.mirostat and not self._greedy
            else None
        )
        self._last: tuple[int, float, TopLogprobs | None] | None = None

    @property
    def complete(self) -> bool:
        """Whether the text so far is all that its constraint asks for; True without one."""
        return self._matcher is None or self._matcher.complete

    @property
    def reach(self) -> int | None:
        """How many of the greatest logits the next choice depends on; None for all of them."""
        return self._reach.of(self._text, self._bars.count(self._n_generated))

    def sample(self, logits: Row | TopLogits) -> tuple[int, float]:
        """Return the id of a token and its logprob, as the package documents them.

        ``logits`` is ``(vocab,)``, or holds the ``reach`` greatest.  The token does not count as
        said before ``accept``.  Raises ``BackendError`` for logits that hold NaN or infinity,
        ``NoTokenLeftError`` when everything is barred, and ``StructureError`` when a constraint
        cannot go on.
        """
        if self._greedy and isinstance(logits, TopLogits):  # which nothing edits, see ``reach``
            self._last = int(logits.ids[0]), -math.log(logits.mass), None
            return self._last[:2]
        candidates = self._candidates(logits)
        if self._greedy:
            picked = int(np.argmax(candidates.logits))
            # The softmax of the largest logit.
            logprob = -math.log(run_sums(softmax_weights(candidates.logits)).sum())
        else:
            picked, probability = pick(candidates.weights(), self._random.random())
            logprob = math.log(probability)
        token = picked if candidates.ids is None else int(candidates.ids[picked])
        self._last = (token, logprob, self._top(logits, token))
        return token, logprob

    def accept(self, token: int) -> None:
        """Count a token as part of the text: penalties and constraints move on with it."""
        self._text.append(token)
        self._n_generated += 1
        if self._matcher is not None and token not in self._rules.stop_ids:
            self._matcher.accept(token)
        sampled, logprob, top = self._last or (None, 0.0, None)
        self._last = None
        if sampled != token:
            return
        if self._mirostat is not None:
            self._mirostat.learn(logprob)
        if top is not None:
            self.top.append(top)

    def distribution(self, logits: Row) -> NDArray[np.float64]:
        """Return the probability with which ``sample`` would choose each token: ``(vocab,)``.

        XTC uses up the random number that decides whether it takes place.  Raises what
        ``sample`` raises.
        """
        candidates = self._candidates(logits)
        probabilities = np.zeros(logits.size)
        if self._greedy:
            picked = int(np.argmax(candidates.logits))
            probabilities[picked if candidates.ids is None else candidates.ids[picked]] = 1.0
        else:
            where = slice(None) if candidates.ids is None else candidates.ids
            probabilities[where] = candidates.shares()
        return probabilities

    def _candidates(self, logits: Row | TopLogits) -> Candidates:
        """Apply everything but the choice itself."""
        if isinstance(logits, TopLogits):
            candidates = Candidates(logits.logits, logits.ids)
        else:
            candidates = Candidates(logits)
        _check(np.max(candidates.logits))
        self._bars.apply(candidates, self._matcher, self._n_generated)
        for stage in self._chain:
            stage(candidates)
        if self._mirostat is not None:
            self._mirostat.truncate(candidates)
        return candidates

    def _top(self, logits: Row | TopLogits, token: int) -> TopLogprobs | None:
        """Return the likeliest tokens of a row as the model gave it."""
        if self._rules.top_logprobs == 0 or isinstance(logits, TopLogits):
            return None
        n = min(self._rules.top_logprobs, logits.size)
        total = float(np.max(logits)) + math.log(run_sums(softmax_weights(logits)).sum())
        tokens = largest(logits, n)
        return TopLogprobs(
            chosen=float(logits[token]) - total,
            tokens=tuple(tokens.tolist()),
            logprobs=tuple(float(logit) - total for logit in logits[tokens]),
        )


def distribution(
    logits: Row, sampling: Sampling, prompt: Sequence[int] = (), rules: TokenRules = NO_RULES
) -> NDArray[np.float64]:
    """Return the probability with which each token follows a prompt: ``(vocab,)``.

    Raises what ``Sampler.sample`` raises.
    """
    return Sampler(sampling, prompt, rules).distribution(logits)


def _check(largest_logit: np.float32) -> None:
    """Raise ``BackendError`` for the largest of a row's logits if it is not finite.

    NumPy's largest number of a row is NaN if any is.
    """
    if not np.isfinite(largest_logit):
        raise BackendError(
            f"the largest logit is {largest_logit}: the weights are damaged, or their type cannot "
            f"hold the numbers on the way; check the checkpoint, or load it with --f32"
        )
