"""The block pool hands out every block once and takes back only what it gave."""

from __future__ import annotations

import pytest

from pyrllama.core import BLOCK_TOKENS, blocks_for
from pyrllama.errors import CacheFullError
from pyrllama.kvcache import BlockPool


@pytest.mark.parametrize(
    ("n_tokens", "n_blocks"),
    [(0, 0), (1, 1), (BLOCK_TOKENS, 1), (BLOCK_TOKENS + 1, 2), (10 * BLOCK_TOKENS, 10)],
)
def test_blocks_for_rounds_up(n_tokens: int, n_blocks: int) -> None:
    assert blocks_for(n_tokens) == n_blocks


def test_every_block_is_given_once_in_order() -> None:
    pool = BlockPool(4)
    assert pool.take(3) == (0, 1, 2)
    assert pool.n_free == 1
    assert pool.take(1) == (3,)
    assert pool.take(0) == ()


def test_too_many_are_refused_and_none_taken() -> None:
    pool = BlockPool(3)
    pool.take(1)
    with pytest.raises(CacheFullError, match="3 blocks of 32 tokens are wanted, but only 2 of 3"):
        pool.take(3)
    assert pool.n_free == 2


def test_the_block_given_back_last_is_taken_first() -> None:
    pool = BlockPool(3)
    pool.take(3)
    pool.give_back([1, 2])
    assert pool.n_free == 2
    assert pool.take(2) == (2, 1)


@pytest.mark.parametrize("wrong", [[0], [1, 1], [7], [-1]])
def test_a_block_that_is_not_taken_cannot_come_back(wrong: list[int]) -> None:
    pool = BlockPool(3)
    pool.take(2)
    pool.give_back([0])
    with pytest.raises(ValueError, match="is not taken"):
        pool.give_back(wrong)
