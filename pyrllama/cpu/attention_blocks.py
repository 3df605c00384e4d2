"""Products of query rows with a block of the KV cache: scores with its keys, sums of its values.

Both are the same loop: the rows of a register tile times a strip of the block, 16 or 32 numbers
wide.  A row's sum is taken number after number whatever the tile, so tiles of any size give
the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyrllama.core import BLOCK_TOKENS
from pyrllama.cpu.kernel import inline, part
from pyrllama.cpu.records import SCORES_STEP
from pyrllama.cpu.register_tiles import Tile, tile_operations

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.vectors import Lanes


class Shapes(NamedTuple):
    """The register tiles of an instruction set, ``(rows, vectors)``."""

    few: tuple[int, int]
    """For the rows of one token; there must be room for what is converted meanwhile."""
    many: tuple[int, int]
    """For those of several tokens, with a block that was converted before."""


NARROW = Shapes(few=(4, 1), many=(6, 1))
"""For 16 registers of 256 bits: a vector takes two, a row's factor and the other operand three."""
WIDE = Shapes(few=(4, 2), many=(6, 2))
"""For 32 registers of 512 bits."""


def multiplier(
    columns: Callable[[int, int], Tile],
    add_products: Callable[..., Tile],
    fetch: Callable[[int], None],
    n_bytes: int,
) -> Callable[..., Tile]:
    """Return the loop that multiplies the rows of a register tile with columns of a block.

    ``columns`` reads a row of them, ``n_bytes`` long.
    """

    @inline
    def multiply(
        a: int, a_step: int, b: int, vector_step: int, b_step: int, n: int, following: int,
        tile: Tile,
    ) -> Tile:  # fmt: skip
        """Add the products of ``n`` numbers of each row of ``a`` with ``n`` rows of ``b``.

        As many bytes are asked for at ``following``, line after line, as are read here.
        """
        for i in range(0, 4 * n, 4):
            fetch(following)
            tile = add_products(tile, a + i, a_step, columns(b, vector_step))
            b += b_step
            following += n_bytes
        return tile

    return multiply


def block_products(
    size: int, load: Callable[[int], Lanes], fetch: Callable[[int], None], height: int, vectors: int
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the functions for scores and for values of a block with numbers of ``size`` bytes.

    ``load`` reads 16 numbers as float32, and ``fetch`` asks for memory that is read soon.
    Register tiles are ``height`` rows of one or two ``vectors``; one row by itself takes two.
    """

    @inline
    def one_column(b: int, _vector_step: int) -> Tile:
        return (load(b),)

    @inline
    def two_columns(b: int, vector_step: int) -> Tile:
        return load(b), load(b + vector_step)

    columns, width = one_column if vectors == 1 else two_columns, 16 * vectors
    zero_tall, load_tall, store_tall, add_tall = tile_operations(height, vectors)
    multiply_tall = multiplier(columns, add_tall, fetch, size * width)
    zero_single, load_single, store_single, add_single = tile_operations(1, 2)
    multiply_single = multiplier(two_columns, add_single, fetch, size * 32)

    @part
    def score(
        q: int, keys: int, following: int, head_dim: int, stride: int,
        first_row: int, rows: int, scores: int,
    ) -> None:  # fmt: skip
        """Write the scores of rows ``first_row`` to ``rows`` with the 32 keys of a block."""
        tile_bytes = 16 * size * stride
        for r in range(first_row, rows, height):
            a, out = q + 4 * r * stride, scores + r * SCORES_STEP
            if rows - r == 1:
                lone = multiply_single(
                    a, 0, keys, tile_bytes, 16 * size, head_dim, following, zero_single()
                )
                store_single(out, 0, 64, lone)
            else:
                for i in range(0, BLOCK_TOKENS, width):
                    tile = i // 16 * tile_bytes
                    sums = multiply_tall(
                        a, 4 * stride, keys + tile, tile_bytes, 16 * size, head_dim,
                        following + tile, zero_tall(),
                    )  # fmt: skip
                    store_tall(out + 4 * i, SCORES_STEP, 64, sums)

    @inline
    def add_to_row(
        weights: int, values: int, following: int, n: int, stride: int, total: int
    ) -> None:
        """Add ``n`` weighted values to one row."""
        for i in range(0, stride, 32):
            # A last lone vector is taken as both of the tile, which then do the same twice.
            second = 16 if i + 16 < stride else 0
            place = total + 4 * i
            lone = load_single(place, 0, 4 * second)
            lone = multiply_single(
                weights, 0, values + size * i, size * second, size * stride, n,
                following + size * BLOCK_TOKENS * i, lone,
            )  # fmt: skip
            store_single(place, 0, 4 * second, lone)

    @part
    def add_values(
        weights: int, values: int, following: int, stride: int,
        first_row: int, rows: int, group: int, seen: int, totals: int, totals_step: int,
    ) -> None:  # fmt: skip
        """Add the weighted values of a block to the totals of rows ``first_row`` to ``rows``.

        The tile's first token sees ``seen`` of its positions, every later one one more; what a
        row does not see is not touched for it, as it may be no number at all.
        """
        for r in range(first_row, rows, height):
            a, out = weights + r * SCORES_STEP, totals + r * totals_step
            n = min(seen + r // group, BLOCK_TOKENS)
            last = min(r + height, rows)
            if last - r == 1:
                add_to_row(a, values, following, n, stride, out)
                continue
            for i in range(0, stride, width):
                second = 16 if i + 16 < stride else 0
                place = out + 4 * i
                sums = load_tall(place, totals_step, 4 * second)
                sums = multiply_tall(
                    a, SCORES_STEP, values + size * i, size * second, size * stride, n,
                    following + size * BLOCK_TOKENS * i, sums,
                )  # fmt: skip
                store_tall(place, totals_step, 4 * second, sums)
            for k in range(r, last):
                more = min(seen + k // group, BLOCK_TOKENS) - n
                if more > 0:
                    unseen = values + n * size * stride
                    add_to_row(
                        weights + k * SCORES_STEP + 4 * n, unseen, unseen, more, stride,
                        totals + k * totals_step,
                    )  # fmt: skip

    return score, add_values
