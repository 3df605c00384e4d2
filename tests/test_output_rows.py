"""The engine asks a model that can tell them for no more logits than the choices depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.fake_model import VOCAB_SIZE, FakeModel
from support.top_logits import top_of_row

from pyrllama.core import MOST_TOP_LOGITS, Batch, Chunk, Request, Sampling, TokenRules
from pyrllama.engine import Engine
from pyrllama.output_rows import TopLogitsModel, output_rows
from pyrllama.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyrllama.core import LogitRow

GREEDY = Sampling(temperature=0)


class Spread(FakeModel):
    """A fake model whose logits are spread, and depend on the text alone."""

    def _row(self, text: NDArray[np.int64]) -> NDArray[np.float32]:
        row = super()._row(text)
        random = np.random.default_rng(int(np.argmax(row)) + len(text))
        return np.round(random.normal(0, 3, row.size), 1).astype(np.float32)


class Choosing(Spread):
    """The same one, which tells the greatest logits; it notes how many it was asked for."""

    asked: list[int]

    def top_logits(self, batch: Batch, k: int) -> Sequence[LogitRow]:
        self.asked.append(k)
        return [top_of_row(row, k) for row in self.forward(batch)]


def generated(
    model: FakeModel, *requests: Request
) -> tuple[list[tuple[int, ...]], list[list[float]]]:
    engine = Engine(model, max_seq_len=200)
    generations = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
    return [g.tokens for g in generations], [g.logprobs for g in generations]


def choosing() -> Choosing:
    model = Choosing(n_blocks=16)
    model.asked = []
    assert isinstance(model, TopLogitsModel)
    return model


@pytest.mark.parametrize(
    ("sampling", "asked"),
    [
        ({"temperature": 0}, {1}),
        ({"seed": 3}, {21}),
        ({"seed": 3, "top_k": 4, "repeat_penalty": 1.2}, set(range(8, 8 + 20))),
        ({"seed": 3, "top_k": 0}, set()),
        ({"seed": 3, "top_k": MOST_TOP_LOGITS}, set()),
        ({"seed": 3, "top_k": VOCAB_SIZE}, set()),
    ],
)
def test_the_text_is_the_same(sampling: dict[str, Any], asked: set[int]) -> None:
    request = Request((1, 2, 3), Sampling(**sampling), 20)
    model = choosing()
    tokens, logprobs = generated(model, request)
    whole_tokens, whole_logprobs = generated(Spread(n_blocks=16), request)
    assert tokens == whole_tokens
    assert logprobs[0] == pytest.approx(whole_logprobs[0], abs=1e-6)
    assert set(model.asked) == asked


def test_requests_side_by_side_get_what_the_farthest_one_needs() -> None:
    requests = [
        Request((1, 2, 3), GREEDY, 5),
        Request((4, 5), Sampling(top_k=30, seed=1), 9),
        Request((6,), Sampling(top_k=3, seed=2), 12),
    ]
    model = choosing()
    tokens, _ = generated(model, *requests)
    assert tokens == generated(Spread(n_blocks=16), *requests)[0]
    assert model.asked == [31] * 9 + [4] * 3


def test_one_request_that_needs_all_logits_gets_them() -> None:
    rules = TokenRules(top_logprobs=2)
    requests = [Request((1, 2, 3), GREEDY, 4), Request((4, 5), GREEDY, 2, rules)]
    model = choosing()
    tokens, _ = generated(model, *requests)
    assert tokens == generated(Spread(n_blocks=16), *requests)[0]
    assert model.asked == [1, 1]


def test_a_prompt_that_gives_no_logits_asks_for_none() -> None:
    model = choosing()
    generated(model, Request(tuple(range(40)), GREEDY, 2))
    assert [batch.n_outputs for batch in model.batches] == [0, 0, 1, 1]
    assert model.asked == [1, 1]


@pytest.mark.parametrize(
    ("sampling", "asked"),
    [
        ({"temperature": 0}, [4]),
        ({"top_k": 6}, [10]),
        ({"top_k": 6, "repeat_penalty": 1.1}, [15]),
        ({"top_k": MOST_TOP_LOGITS - 3}, []),
        ({"top_k": 0}, []),
    ],
)
def test_rows_that_check_drafts_reach_further(sampling: dict[str, Any], asked: list[int]) -> None:
    """Each of the drafts may become one more token that a penalty lowers."""
    text = (1, 2, 3, 4, 5, 6, 7, 8)
    model, sampler = choosing(), Sampler(Sampling(**sampling), text[:5])
    rows = output_rows(model, Batch((Chunk(text, 0, (0,), outputs=4),)), [sampler])
    assert len(rows) == 4
    assert model.asked == asked
