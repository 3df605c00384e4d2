"""Which tokens can come next, for one text after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.errors import StructureError
from pyrllama.structured.library import llguidance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.structured.grammar import Structure
    from pyrllama.structured.vocabulary import Vocabulary

BITS = 32
"""Tokens of one word of the library's masks."""


class Constraint:
    """A structure over a vocabulary, which many texts can share; a ``core.TokenConstraint``.

    ``stop_ids`` are the tokens that end a text: allowed where the text is a whole match.
    Raises ``StructureError`` for a structure that these tokens cannot write.
    """

    def __init__(
        self, structure: Structure, vocabulary: Vocabulary, stop_ids: frozenset[int]
    ) -> None:
        self._vocabulary = vocabulary
        self._stop_ids = np.array(sorted(stop_ids), np.int64)
        self._first = llguidance().LLMatcher(
            vocabulary.library_tokenizer, structure.grammar, log_level=0
        )
        check(self._first)

    def start(self) -> Matcher:
        """Return the position before the first token of a text."""
        return Matcher(self._first.deep_copy(), self._vocabulary.end_id, self._stop_ids)


class Matcher:
    """How far one text has come; a ``core.TokenMatcher``."""

    def __init__(self, matcher: Any, end_id: int, stop_ids: NDArray[np.int64]) -> None:
        self._matcher = matcher
        self._end_id = end_id
        self._stop_ids = stop_ids
        self._mask = np.empty(end_id // BITS + 1, np.uint32)

    @property
    def complete(self) -> bool:
        """Whether the text so far is a whole match."""
        return bool(self._matcher.is_accepting())

    def allowed(self, n_logits: int) -> NDArray[np.bool_]:
        """Return which tokens may come next, ``(n_logits,)``.

        Raises ``StructureError`` where the library gives up on what is too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        check(self._matcher)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        allowed = np.zeros(n_logits, np.bool_)  # rows of padding stand for no token
        n_tokens = min(n_logits, self._end_id)
        allowed[:n_tokens] = bits[:n_tokens]
        allowed[self._stop_ids[self._stop_ids < n_logits]] = bits[self._end_id]
        return allowed

    def accept(self, token: int) -> None:
        """Move on by a token that was allowed."""
        self._matcher.consume_token(token)
        check(self._matcher)


def check(matcher: Any) -> None:
    """Raise ``StructureError`` with the first line of what went wrong in the library."""
    if matcher.is_error():
        problem = matcher.get_error().strip().split("\n", 1)[0]
        raise StructureError(f"the structure cannot be followed: {problem}")
