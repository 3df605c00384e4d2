"""Collecting an importance matrix: the mean squares of what each matrix multiplies, over a text.

All tokens of every chunk count (``text_chunks.py``), each once for each matrix.

Source: ``compute_imatrix`` in llama.cpp's ``tools/imatrix/imatrix.cpp``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from pyrllama.errors import BackendError
from pyrllama.importance import write_importance
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.engine import Engine
    from pyrllama.text_chunks import TextChunks

    Squares = Mapping[str, NDArray[np.float64]]

PROJECTIONS = {OUTPUT, TOKEN_EMBEDDING}
"""Matrices that the vocabulary projection may be."""
_LARGEST = float(np.finfo(np.float32).max)


@runtime_checkable
class SquareCounter(Protocol):
    """What a backend offers that importance can be collected on."""

    def input_squares(self) -> AbstractContextManager[Squares]:
        """Add up the squares of the inputs of every matrix, column by column, while it is open.

        What it gives are the sums by the matrices' names, ``(cols,)``, which every forward pass
        adds to: those of the vocabulary projection for tokens whose logits are wanted.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """The importance collected so far; the sums grow with the next chunk."""

    text: TextChunks
    chunks: int
    """Chunks read."""
    sums: Squares
    """Sums of squares of each matrix's inputs, ``(cols,)``."""

    @property
    def tokens(self) -> int:
        """Tokens read, which is how many inputs each matrix had."""
        return self.chunks * self.text.context

    def write(self, path: Path, dataset: str) -> None:
        """Write it in llama.cpp's GGUF form; ``dataset`` names the text."""
        write_importance(
            path,
            self.sums,
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
        sums = {n: values for n, values in counted.items() if output or n not in PROJECTIONS}
        for number in range(text.count):
            for _ in engine.logit_batches(text.inputs(number), first):
                pass  # only what they are computed with is wanted of the logits
            _check_finite(sums, number)
            yield Collection(text, number + 1, sums)


def _check_finite(sums: Squares, number: int) -> None:
    for name, squares in sums.items():
        if not squares.max() <= _LARGEST:  # nor if it is no number
            raise BackendError(
                f"chunk {number + 1} of the text gives {name} an input that is not finite, or too "
                f"large to square; the weights are damaged or overflow in their type: try --f32"
            )
