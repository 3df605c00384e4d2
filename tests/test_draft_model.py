"""A smaller model reads along and drafts; the text stays that of the larger one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.fake_model import VOCAB_SIZE, ByteTokenizer, FakeModel, next_token

from pyrllama.core import Request, Sampling
from pyrllama.draft_model import DraftModel, check_same_vocabulary
from pyrllama.engine import Engine
from pyrllama.errors import TokenizerError
from pyrllama.speculation import Speculation

if TYPE_CHECKING:
    from collections.abc import Sequence


def expected(prompt: Sequence[int], count: int) -> tuple[int, ...]:
    text = list(prompt)
    for _ in range(count):
        text.append(next_token(text))
    return tuple(text[len(prompt) :])


def test_it_proposes_its_likeliest_tokens_wherever_the_text_went() -> None:
    model = FakeModel(n_blocks=4, max_batch_tokens=16)
    drafter = DraftModel(model, VOCAB_SIZE)
    text = list(range(50))
    assert drafter.look(text) == 0
    assert drafter.propose(text, 5) == expected(text, 5)
    batches = len(model.batches)
    text += expected(text, 3)
    assert drafter.propose(text, 4) == expected(text, 4)
    assert len(model.batches) == batches + 4
    other = [*text[:20], 7, 7]
    assert drafter.look(other) == 0
    assert drafter.propose(other, 3) == expected(other, 3)


def test_it_stops_at_the_end_of_its_context() -> None:
    drafter = DraftModel(FakeModel(n_blocks=1), VOCAB_SIZE)
    assert len(drafter.propose(list(range(30)), 9)) == 3
    assert drafter.look(list(range(31))) == 0
    assert drafter.look(list(range(32))) is None


def test_ids_that_only_its_padding_has_are_never_proposed() -> None:
    text = list(range(10))
    drafter = DraftModel(FakeModel(script={12: 255}), 250)
    assert drafter.propose(text, 5) == expected(text, 2)


@pytest.mark.parametrize("agrees", [True, False])
def test_the_text_is_that_of_the_model(agrees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100_000))
    monkeypatch.setattr("pyrllama.engine.perf_counter", lambda: 10 * next(seconds))
    monkeypatch.setattr("pyrllama.speculation.perf_counter", lambda: 0)
    script = None if agrees else dict.fromkeys(range(60, 90, 3), 5)
    draft = FakeModel(script=script)
    engine = Engine(
        FakeModel(max_batch_tokens=64), 200, speculation=Speculation(DraftModel(draft, VOCAB_SIZE))
    )
    prompt = tuple(range(40))
    generation = engine.submit(Request(prompt, Sampling(temperature=0), 90))
    while generation.finish is None:
        engine.step()
    assert generation.tokens == expected(prompt, 90)
    assert generation.drafted > 0
    assert (generation.accepted == generation.drafted) == agrees
    engine.close()
    assert draft.closed


def test_another_vocabulary_is_refused() -> None:
    class Shifted(ByteTokenizer):
        def _token_bytes(self, token: int) -> bytes:
            return super()._token_bytes((token + (token >= 65)) % VOCAB_SIZE)

    class Smaller(ByteTokenizer):
        vocab_size = 100

    check_same_vocabulary(ByteTokenizer(), ByteTokenizer(), Path("draft.gguf"))
    with pytest.raises(TokenizerError, match=r"draft\.gguf: token 65 is b'B' in the draft model"):
        check_same_vocabulary(ByteTokenizer(), Shifted(), Path("draft.gguf"))
    with pytest.raises(TokenizerError, match="has 100 tokens and the model 258"):
        check_same_vocabulary(ByteTokenizer(), Smaller(), Path("draft.gguf"))
