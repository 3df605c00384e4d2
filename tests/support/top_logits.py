"""The greatest logits of rows, whoever finds them, and the texts that are chosen from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest

from pyrllama.backend import Model
from pyrllama.core import Request, Sampling, TopLogits
from pyrllama.engine import Engine
from pyrllama.output_rows import TopLogitsModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import Batch


def top_of_row(row: NDArray[np.float32], k: int) -> TopLogits:
    """Return the ``k`` greatest logits of a row, by sorting all of it."""
    ids = np.lexsort((np.arange(row.size), -row))[:k]
    wide = row.astype(np.float64)
    return TopLogits(row[ids], ids, float(np.exp(wide - wide.max()).sum()))


def check_top(found: TopLogits | None, row: NDArray[np.float32], k: int) -> None:
    """Fail unless the greatest logits of a row are those, in their order."""
    assert found is not None
    expected = top_of_row(row, k)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert found.mass == pytest.approx(expected.mass, rel=1e-5)


class Choosing(Model, TopLogitsModel, Protocol):
    """A model that tells the greatest logits."""


class Whole:
    """The same one, which cannot tell them from the others."""

    def __init__(self, model: Choosing) -> None:
        self.config, self.n_blocks = model.config, model.n_blocks
        self.max_batch_tokens = model.max_batch_tokens
        self.weight_bytes = self.decode_bytes = self.kv_bytes_per_token = 1
        self.forward = model.forward

    def close(self) -> None:
        """Leave it open."""


def texts(model: Model, samplings: list[Sampling]) -> list[tuple[int, ...]]:
    """Return what requests side by side give; the model stays open."""
    engine = Engine(model, max_seq_len=96)
    requests = [
        Request(tuple(range(3 + i, 9)), sampling, 20 + i) for i, sampling in enumerate(samplings)
    ]
    generations = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
    return [generation.tokens for generation in generations]


def check_texts(model: Choosing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless texts are those that whole rows give, and few logits were asked for."""
    asked: list[int] = []
    top_logits = model.top_logits

    def noting(batch: Batch, k: int, *hidden: Any) -> Any:
        asked.append(k)
        return top_logits(batch, k, *hidden)

    monkeypatch.setattr(model, "top_logits", noting)
    several = [Sampling(temperature=0), Sampling(top_k=5, seed=2), Sampling(top_k=9, seed=3)]
    for samplings in ([several[0]], [several[1]], several):
        assert texts(model, samplings) == texts(Whole(model), samplings)
    assert set(asked) == {1, 6, 10}
