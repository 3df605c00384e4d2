"""Texts take over what earlier ones left, and never more than is really there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.fake_model import CopyingModel, FakeModel

from pyrllama.core import BLOCK_TOKENS, CacheMiss
from pyrllama.kvcache import block_name, root_name
from pyrllama.prefix import Held, PrefixCache, agreeing, shared_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence


def compute(cache: PrefixCache, held: Held, text: Sequence[int]) -> None:
    """Claim that all of a text has been computed, but for its last token."""
    held.cached = len(text) - 1
    cache.note(held, text)


def leave(cache: PrefixCache, text: Sequence[int]) -> None:
    """Let a text be computed and end."""
    held = cache.begin(text)
    assert held is not None
    compute(cache, held, text)
    cache.end(held, text)


def known(cache: PrefixCache, text: Sequence[int]) -> tuple[int, CacheMiss | None]:
    """Return what a text finds, without changing anything but the order of eviction."""
    held = cache.begin(text)
    assert held is not None
    found = held.cached, held.miss
    cache.end(held, text)
    return found


@pytest.mark.parametrize("length", [2, 31, 32, 33, 34, 64, 65, 100])
@pytest.mark.parametrize("model", [FakeModel, CopyingModel])
def test_the_same_text_again_computes_its_last_token(length: int, model: type[FakeModel]) -> None:
    cache = PrefixCache(model())
    text = list(range(length))
    assert known(cache, text) == (0, CacheMiss.NEW)
    leave(cache, text)
    assert known(cache, text) == (length - 1, None)
    assert cache.pool.n_free == 8


def test_a_text_that_goes_on_takes_the_unfinished_block_itself() -> None:
    model = CopyingModel()
    cache = PrefixCache(model)
    leave(cache, list(range(41)))
    assert known(cache, list(range(60))) == (40, CacheMiss.DIFFERS)
    assert model.n_read == 0


def test_of_a_block_that_differs_the_agreeing_part_is_copied() -> None:
    model = CopyingModel()
    cache = PrefixCache(model)
    first = list(range(80))
    leave(cache, first)
    edited = [*first[:50], 7, 7, 7]
    assert known(cache, edited) == (50, CacheMiss.DIFFERS)
    assert (model.n_read, model.n_written) == (1, 1)
    assert known(cache, first) == (79, None)


def test_without_copies_a_block_that_differs_is_left_alone() -> None:
    cache = PrefixCache(FakeModel())
    leave(cache, list(range(80)))
    assert known(cache, [*range(50), 7, 7, 7]) == (32, CacheMiss.DIFFERS)


def test_where_blocks_are_scarce_the_one_that_differs_is_taken() -> None:
    model = CopyingModel(n_blocks=2)
    cache = PrefixCache(model)
    leave(cache, list(range(64)))
    assert known(cache, [*range(50), *[7] * 14]) == (50, CacheMiss.DIFFERS)
    assert model.n_read == 0
    assert known(cache, list(range(64))) == (50, CacheMiss.DIFFERS)


def test_running_texts_share_full_blocks_and_copy_the_unfinished_one() -> None:
    cache = PrefixCache(CopyingModel())
    text = list(range(40))
    first = cache.begin(text)
    assert first is not None
    compute(cache, first, text)
    cache.note_part(first, text)
    second = cache.begin(text)
    assert second is not None
    assert second.cached == 39
    assert second.blocks[0] == first.blocks[0]
    assert second.blocks[1] != first.blocks[1]
    cache.end(first, text)
    cache.end(second, text)
    assert cache.pool.n_free == 8


def test_what_had_to_go_is_said_to_have_gone() -> None:
    cache = PrefixCache(FakeModel(n_blocks=2))
    leave(cache, list(range(64)))
    leave(cache, list(range(100, 164)))
    assert known(cache, list(range(64))) == (0, CacheMiss.EVICTED)


def test_the_end_of_a_text_goes_before_its_beginning() -> None:
    cache = PrefixCache(FakeModel(n_blocks=3))
    leave(cache, list(range(97))[:96])
    leave(cache, [200, 201])
    assert known(cache, list(range(96)))[0] == 64


def test_reuse_can_be_switched_off() -> None:
    cache = PrefixCache(CopyingModel(), reuse=False)
    leave(cache, list(range(40)))
    assert known(cache, list(range(40))) == (0, CacheMiss.OFF)
    assert cache.pool.n_free == 8


def test_a_text_for_which_there_is_no_room_holds_nothing() -> None:
    cache = PrefixCache(FakeModel(n_blocks=3))
    leave(cache, list(range(40)))
    assert cache.begin(list(range(97))) is None
    assert cache.pool.n_free == 3
    running = cache.begin(list(range(40)))
    assert running is not None
    assert cache.begin([*range(32), *range(100, 164)]) is None
    cache.end(running, list(range(40)))
    assert cache.pool.n_free == 3


def test_a_failure_on_the_way_gives_all_blocks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CopyingModel()
    cache = PrefixCache(model)
    leave(cache, list(range(80)))
    for method in ("read_block", "write_block"):
        with monkeypatch.context() as patch:
            patch.setattr(model, method, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                cache.begin([*range(50), 7, 7])
        assert cache.pool.n_free == 8
    assert known(cache, list(range(80))) == (79, None)


def test_a_name_stands_for_model_tokens_and_place() -> None:
    root, other = root_name(b"model"), root_name(b"another")
    block, changed = list(range(BLOCK_TOKENS)), [1, *range(1, BLOCK_TOKENS)]
    first = block_name(root, block)
    names = {
        root, other, first, block_name(other, block), block_name(root, changed),
        block_name(first, block), block_name(block_name(root, changed), block),
    }  # fmt: skip
    assert len(names) == 7
    assert first == block_name(root_name(b"model"), tuple(block))


@pytest.mark.parametrize(
    ("text", "other", "n_tokens"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [2, 2], 0)],
)
def test_agreeing_counts_from_the_beginning(
    text: list[int], other: list[int], n_tokens: int
) -> None:
    assert agreeing(text, other) == agreeing(other, text) == n_tokens


def test_the_last_token_is_never_shared() -> None:
    assert shared_blocks(range(64), range(64)) == 1
    assert shared_blocks(range(65), range(64)) == 2
