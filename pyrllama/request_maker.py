"""From what a caller asks for to a ``Request``: settings resolved, strings turned into tokens."""

from __future__ import annotations

import dataclasses
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrllama.core import Request, TokenRules
from pyrllama.errors import SettingError
from pyrllama.sampling_settings import SamplingSettings, plain, resolve
from pyrllama.stop_strings import StopStrings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyrllama.core import Sampling, TokenConstraint
    from pyrllama.structured import Structure, Vocabulary
    from pyrllama.tokenizer import Tokenizer

MOST_TOP_LOGPROBS = 1000
CACHED_BREAKERS = 64
"""Texts whose tokens are kept: finding them takes a look at every token."""
CACHED_CONSTRAINTS = 16
"""Structures whose compiled grammar is kept."""


class WritingSettings(SamplingSettings, total=False):
    """What a caller may say of how a text is written.

    ``logprobs`` is how many of the likeliest tokens to report with each token.  One of
    ``json_schema`` (a dictionary or its JSON), ``regex`` and ``grammar`` (GBNF or Lark) is what
    the text must match.
    """

    logprobs: int
    json_schema: str | Mapping[str, Any] | bool | None
    regex: str | None
    grammar: str | None


class GenerationSettings(WritingSettings, total=False):
    """What a caller may say of a generation besides its prompt and its length.

    ``stop`` is a string or several that end the text, which is cut before them.
    """

    stop: str | Sequence[str]


class Asked(NamedTuple):
    """A request for the engine, and what watches over the text that it yields."""

    request: Request
    stops: StopStrings


class RequestMaker:
    """Makes requests for one model: its tokenizer, its ends of texts, its own settings."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        vocab_size: int,
        model_settings: Mapping[str, Any],
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._vocab_size = vocab_size
        self._model_settings = model_settings
        self._sequences_of = lru_cache(CACHED_BREAKERS)(self._sequences)
        self._constraint_of = lru_cache(CACHED_CONSTRAINTS)(self._make_constraint)

    def make(
        self,
        tokens: Sequence[int],
        sampling: Sampling | None,
        max_tokens: int | None,
        settings: GenerationSettings,
    ) -> Asked:
        """Return the request for a prompt's tokens.

        Settings go before ``sampling``, which states all that they leave open; without it the
        model's own settings do, and then the defaults.  Raises ``SettingError``,
        ``StructureError`` or ``MissingPackageError``.
        """
        rest: dict[str, Any] = dict(settings)
        stop = rest.pop("stop", ())
        stops = StopStrings((stop,) if isinstance(stop, str) else stop)
        top = _checked_top(rest.pop("logprobs", 0))
        constraint = self._constraint(
            rest.pop("json_schema", None), rest.pop("regex", None), rest.pop("grammar", None)
        )
        chosen = self._sampling(sampling, rest)
        rules = TokenRules(self._stop_ids, self._breakers(chosen), constraint, top)
        return Asked(Request(tuple(tokens), chosen, max_tokens, rules), stops)

    def _sampling(self, base: Sampling | None, settings: dict[str, Any]) -> Sampling:
        if base is None:
            chosen = resolve(request=settings, model=self._model_settings).sampling  # type: ignore[arg-type]
        else:
            chosen = dataclasses.replace(base, **{k: plain(k, v) for k, v in settings.items()})
        named = [token for token, _ in chosen.logit_bias] + list(chosen.banned_tokens)
        for token in named:
            if token >= self._vocab_size:
                raise SettingError(
                    "a token of logit_bias or banned_tokens", token, f"under {self._vocab_size}"
                )
        return chosen

    def _breakers(self, sampling: Sampling) -> tuple[tuple[int, ...], ...]:
        """Return the tokens of DRY's sequence breakers, if it is on."""
        if sampling.dry_multiplier == 0.0:
            return ()
        texts = sampling.dry_sequence_breakers
        return tuple(tokens for text in texts for tokens in self._sequences_of(text))

    def _sequences(self, text: str) -> list[tuple[int, ...]]:
        return self._vocabulary.sequences(text)

    def _constraint(self, *sources: Any) -> TokenConstraint | None:
        if all(source is None for source in sources):
            return None
        from pyrllama.structured import read_structure  # noqa: PLC0415 - start-up time

        structure = read_structure(*sources)
        return None if structure is None else self._constraint_of(structure)

    def _make_constraint(self, structure: Structure) -> TokenConstraint:
        from pyrllama.structured import Constraint  # noqa: PLC0415 - start-up time

        return Constraint(structure, self._vocabulary, self._stop_ids)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from pyrllama.structured import Vocabulary  # noqa: PLC0415 - start-up time

        return Vocabulary(self._tokenizer)


def _checked_top(n: int) -> int:
    if not isinstance(n, int) or not 0 <= n <= MOST_TOP_LOGPROBS:
        raise SettingError("logprobs", n, f"a whole number from 0 to {MOST_TOP_LOGPROBS}")
    return n
