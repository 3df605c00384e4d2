"""What a model is asked of a batch's logits: whole rows, or no more than the choices depend on."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from pyrllama.core import MOST_TOP_LOGITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyrllama.backend import Model
    from pyrllama.core import Batch, LogitRow
    from pyrllama.sampling import Sampler


@runtime_checkable
class TopLogitsModel(Protocol):
    """A model that can find the greatest logits where they are computed."""

    def top_logits(self, batch: Batch, k: int) -> Sequence[LogitRow]:
        """Run a batch and return the ``k`` greatest logits of each row that it asks for.

        ``k`` is from 1 to ``MOST_TOP_LOGITS``.  A whole row may stand in the place of any, such as
        one that holds NaN or infinity.
        """
        ...


def output_rows(model: Model, batch: Batch, samplers: Sequence[Sampler]) -> Sequence[LogitRow]:
    """Run a batch and return for each wanted row what the sampler of its chunk needs."""
    k = _reach(batch, samplers)
    if k is None or k >= model.config.vocab_size or not _tells_top(type(model)):
        return model.forward(batch)  # type: ignore[return-value]  # rows of an array are arrays
    return cast("TopLogitsModel", model).top_logits(batch, k)


@cache
def _tells_top(kind: type[Model]) -> bool:
    """Whether models of a class are ``TopLogitsModel``; to find out costs more than to choose."""
    return issubclass(kind, TopLogitsModel)


def _reach(batch: Batch, samplers: Sequence[Sampler]) -> int | None:
    """Return how many of the greatest logits are enough for all choices; None for all of them.

    Each draft that a row behind it checks may become one more token that penalties lower.
    """
    greatest = 0
    for chunk, sampler in zip(batch.chunks, samplers, strict=True):
        if chunk.outputs:
            reach = sampler.reach
            if reach is None or reach + chunk.outputs - 1 > MOST_TOP_LOGITS:
                return None
            greatest = max(greatest, reach + chunk.outputs - 1)
    return greatest or None
