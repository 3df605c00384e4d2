"""Collecting an importance matrix: the mean squares of what each matrix multiplies, over a text.

All tokens of every chunk count (``text_chunks.py``), each once for each matrix, or for each of
those of the experts that it chose.

Source: ``compute_imatrix`` in llama.cpp's ``tools/imatrix/imatrix.cpp``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from pyrllama.core import InputSquares
from pyrllama.errors import BackendError
from pyrllama.importance import write_importance
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pyrllama.engine import Engine
    from pyrllama.text_chunks import TextChunks

PROJECTIONS = {OUTPUT, TOKEN_EMBEDDING}
"""Matrices that the vocabulary projection may be."""
_LARGEST = float(np.finfo(np.float32).max)


@runtime_checkable
class SquareCounter(Protocol):
    """What a backend offers that importance can be collected on."""

    def input_squares(self) -> AbstractContextManager[InputSquares]:
        """Add up the squares of the inputs of every matrix, column by column, while it is open.

        The vocabulary projection's are those of tokens whose logits are wanted.  What
        ``ffn_down`` multiplies counts before the expert's weight for the token.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """The importance collected so far; the sums grow with the next chunk."""

    text: TextChunks
    chunks: int
    """Chunks read."""
    squares: InputSquares
    """Of the matrices whose importance is wanted."""

    @property
    def tokens(self) -> int:
        """Tokens read, which is how many inputs each matrix had that is not an expert's."""
        return self.chunks * self.text.context

    @property
    def n_of_experts(self) -> int:
        """Matrices of experts, one by one."""
        return sum(tokens.size for tokens in self.squares.tokens.values())

    @property
    def n_idle(self) -> int:
        """Those of experts that no token has chosen: their importance stays unknown."""
        return sum(int((tokens == 0).sum()) for tokens in self.squares.tokens.values())

    def write(self, path: Path, dataset: str) -> None:
        """Write it in llama.cpp's GGUF form; ``dataset`` names the text."""
        write_importance(
            path,
            self.squares,
            self.tokens,
            dataset=dataset,
            chunks=self.chunks,
            chunk_size=self.text.context,
        )


def collect(engine: Engine, text: TextChunks, *, output: bool = False) -> Iterator[Collection]:
    """Read a text and yield the importance so far after every chunk.

    ``output`` collects that of the vocabulary projection too, for which all logits are
    computed; quantising it by its importance seldom pays.  Raises ``BackendError`` on a backend
    that cannot collect importance, and for activations that are not finite.
    """
    if not isinstance(engine.model, SquareCounter):
        raise BackendError("this backend cannot collect importance; take the one named cpu")
    first = 0 if output else text.context
    with engine.model.input_squares() as counted:
        wanted = {n: sums for n, sums in counted.sums.items() if output or n not in PROJECTIONS}
        squares = InputSquares(wanted, counted.tokens)
        for number in range(text.count):
            for _ in engine.logit_batches(text.inputs(number), first):
                pass  # only what they are computed with is wanted of the logits
            _check_finite(squares, number)
            yield Collection(text, number + 1, squares)


def _check_finite(squares: InputSquares, number: int) -> None:
    for name, sums in squares.sums.items():
        if not sums.max() <= _LARGEST:  # nor if it is no number
            raise BackendError(
                f"chunk {number + 1} of the text gives {name} an input that is not finite, or too "
                f"large to square; the weights are damaged or overflow in their type: try --f32"
            )
