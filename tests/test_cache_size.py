"""Room in the KV cache for several texts: what is asked for, what fits, and that it is enough."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_model import FakeModel
from support.tiny_models import MemoryCheckpoint, logits_of, random_weights, tiny_config

from pyrllama import memory
from pyrllama.cache_size import MOST_TEXTS, most_tokens, texts_that_fit, wanted_tokens
from pyrllama.core import Request, Sampling, blocks_for
from pyrllama.engine import Engine
from pyrllama.errors import NotEnoughMemoryError, SettingError
from pyrllama.loading import load_model
from pyrllama.model_config import DynamicRope, ModelConfig
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pyrllama.backend import Model
    from pyrllama.memory import MemoryNeed

CONFIG = tiny_config()


def test_one_text_has_a_context() -> None:
    assert wanted_tokens(100) == 100
    assert wanted_tokens(100, 1, 5) == 100


@pytest.mark.parametrize(
    ("texts", "text_tokens", "tokens"),
    [
        (2, None, 2 * 128),
        (4, None, 4 * 128),
        (4, 1, 128 + 3 * 32),
        (4, 2, 128 + 3 * 64),  # two tokens may lie in two blocks
        (4, 33, 128 + 3 * 64),
        (4, 34, 128 + 3 * 96),
        (4, 1000, 4 * 128),
        (10**9, None, MOST_TEXTS * 128),
    ],
)
def test_others_add_what_they_do_not_share(
    texts: int, text_tokens: int | None, tokens: int
) -> None:
    assert wanted_tokens(100, texts, text_tokens) == tokens


@pytest.mark.parametrize(("texts", "text_tokens"), [(0, None), (-1, 5), (2, 0)])
def test_counts_under_one_are_refused(texts: int, text_tokens: int | None) -> None:
    with pytest.raises(SettingError, match="a whole number from 1 upwards"):
        wanted_tokens(100, texts, text_tokens)


@pytest.mark.parametrize(
    ("room", "tokens"),
    [(0, 100), (100, 100), (128, 100), (159, 100), (160, 160), (383, 352), (400, 384), (999, 416)],
)
def test_the_most_tokens_that_fit(room: int, tokens: int) -> None:
    """The least is a context, whatever fits; the others are whole blocks."""
    assert most_tokens(100, 416, lambda n: n <= room) == tokens


def test_what_is_wanted_is_asked_about_first() -> None:
    assert most_tokens(100, 10**9, lambda n: n == 10**9) == 10**9
    assert most_tokens(100, 100, lambda _: pytest.fail("a context is not asked about")) == 100


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 70), st.integers(1, 6))
def test_so_many_texts_are_written_side_by_side(
    n_prompt: int, text_tokens: int, texts: int
) -> None:
    """All of them take one step more than one of them alone: the others share its blocks."""
    max_seq_len = 100
    limit = min(text_tokens, max_seq_len - n_prompt)
    tokens = wanted_tokens(max_seq_len, texts, text_tokens)
    model = FakeModel(blocks_for(tokens), max_batch_tokens=6 * max_seq_len)
    assert texts_that_fit(model.n_blocks, n_prompt, limit) >= texts
    engine = Engine(model, max_seq_len)
    request = Request(tuple(range(n_prompt)), Sampling(temperature=0), text_tokens)
    generations = [engine.submit(request) for _ in range(texts)]
    while engine.busy:
        engine.step()
    assert [generation.generated for generation in generations] == [limit] * texts
    assert len(model.batches) <= limit + 1


def test_one_context_lets_the_others_wait() -> None:
    model = FakeModel(n_blocks=4, max_batch_tokens=64)
    engine = Engine(model, max_seq_len=100)
    assert texts_that_fit(4, 8, 92) == 1
    for _ in range(3):
        engine.submit(Request(tuple(range(8)), Sampling(temperature=0)))
    while engine.busy:
        engine.step()
    assert len(model.batches) > 92 + 1


@pytest.mark.parametrize(
    ("n_blocks", "prompt_tokens", "text_tokens", "texts"),
    [
        (32, 8, 1016, 1),
        (32, 8, 100, 8),
        (4, 33, 32, 3),
        (4, 33, 33, 1),
        (5, 33, 33, 2),
        (1, 1, 1, 1),
    ],
)
def test_texts_that_fit(n_blocks: int, prompt_tokens: int, text_tokens: int, texts: int) -> None:
    assert texts_that_fit(n_blocks, prompt_tokens, text_tokens) == texts


# --- a cache as memory allows -----------------------------------------------------------------


def load(
    backend: str, told: list[Any], config: ModelConfig = CONFIG, tokens: int = 512, **changes: Any
) -> Model:
    """Load a tiny model for texts of 100 tokens, of which it could hold four."""
    checkpoint = MemoryCheckpoint(config, random_weights(config), TensorType.F16)
    return load_model(
        checkpoint, backend=backend, weight_type=None, max_seq_len=100, cache_tokens=tokens,
        threads=1, progress=None, on_memory=told.append, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_cache_grows_as_far_as_memory_is_free(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    told: list[MemoryNeed] = []
    n_blocks = []
    for share in (1, 0.5, 0.0):
        model = load(backend, told)
        n_blocks.append(model.n_blocks)
        model.close()
        if share < 1:
            assert told[-1].free is not None
            assert told[-1].total <= told[-1].free
        whole, kv_cache = told[0].total, told[0].kv_cache
        free = whole - int(kv_cache * (1 - share / 2) * 0.75)
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
    assert n_blocks[0] == 16
    assert 4 <= n_blocks[2] <= n_blocks[1] < 16
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    with pytest.raises(NotEnoughMemoryError):
        load(backend, told)
    unchecked = load(backend, told, check_memory=False)
    assert unchecked.n_blocks == 16
    unchecked.close()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_larger_cache_changes_no_text(backend: str) -> None:
    """Dynamic RoPE is made for the longest text, however many of them the cache holds."""
    config = dataclasses.replace(CONFIG, rope_scaling=DynamicRope(2.0, 64))
    found = []
    for tokens in (100, 512):
        model = load(backend, [], config, tokens)
        found.append(logits_of(model, range(90)))
        model.close()
    np.testing.assert_array_equal(found[1], found[0])
