"""A text's vector: from whatever gives the states, and an error from what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_model import ByteTokenizer, FakeModel

from pyrllama.errors import BackendError, PromptTooLongError
from pyrllama.llama import Llama

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.core import Batch


class StatesModel(FakeModel):
    """Its state of a token is the token's id and 1."""

    def final_states(self, batch: Batch) -> NDArray[np.float32]:
        self.forward(batch)
        (chunk,) = batch.chunks
        return np.array([[token, 1] for token in chunk.tokens], np.float32)


def embedding(model: FakeModel, text: str | list[int]) -> NDArray[np.float32]:
    model.config = model.config.__class__(**{
        name: getattr(model.config, name) for name in model.config.__slots__
    } | {"dim": 2})  # fmt: skip
    return Llama(model, ByteTokenizer(add_bos=False), 200).embed(text)


def test_the_mean_over_all_passes_is_scaled_to_one() -> None:
    tokens = list(range(100))
    mean = np.array([np.mean(tokens), 1.0])
    assert embedding(StatesModel(), tokens) == pytest.approx(mean / np.linalg.norm(mean))
    assert embedding(StatesModel(), "ab").dtype == np.float32


def test_what_cannot_be_embedded_is_named() -> None:
    with pytest.raises(BackendError, match="gives no hidden states"):
        embedding(FakeModel(), "text")
    with pytest.raises(PromptTooLongError):
        embedding(StatesModel(), "x" * 201)
    broken = StatesModel()
    broken.final_states = lambda batch: np.full((batch.n_tokens, 2), np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="not finite"):
        embedding(broken, "text")
