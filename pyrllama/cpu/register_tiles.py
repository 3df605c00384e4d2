"""Tiles of vectors that stay in registers: rows by vectors of 16, as a tuple of values.

A tile's size is fixed when a kernel is written, so kernels for several sizes are the same few
lines; each operation below becomes an instruction for every vector of the tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from numba import types
from numba.core import cgutils

from pyrllama.cpu.vectors import F32, I64, call_llvm, constant, f32x16, instruction, pointer, spread

if TYPE_CHECKING:
    from collections.abc import Callable

Tile: TypeAlias = Any
"""A tuple of vectors in a kernel, row after row; its own type exists for Numba alone."""


class TileOperations(NamedTuple):
    """The instructions for one size of tile; steps are in bytes."""

    zero: Callable[[], Tile]
    """``zero()`` is a tile of zeros."""
    load: Callable[[int, int, int], Tile]
    """``load(address, row_step, vector_step)`` reads a tile."""
    store: Callable[[int, int, int, Tile], None]
    """``store(address, row_step, vector_step, tile)`` writes one."""
    add_products: Callable[[Tile, int, int, Tile], Tile]
    """``add_products(tile, a, a_step, b)`` adds to each row ``i`` the vectors ``b``, of which
    a row has as many, times the float32 at ``a + i * a_step``."""


def tile_operations(rows: int, vectors: int) -> TileOperations:
    """Return the instructions for tiles of ``rows`` times ``vectors`` vectors of float32."""
    tile_type = types.UniTuple(f32x16, rows * vectors)
    places = [(row, vector) for row in range(rows) for vector in range(vectors)]

    @instruction
    def zero(_typing: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
            return cgutils.pack_array(builder, [constant(f32x16, 0.0)] * len(places))

        return tile_type(), build

    @instruction
    def load(_typing: Any, address: Any, row_step: Any, vector_step: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            found = [_place(builder, args, *place) for place in places]
            return cgutils.pack_array(builder, [builder.load(p, align=4) for p in found])

        return tile_type(types.int64, types.int64, types.int64), build

    @instruction
    def store(_typing: Any, address: Any, row_step: Any, vector_step: Any, tile: Any) -> Any:
        def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            values = cgutils.unpack_tuple(builder, args[3], len(places))
            for value, place in zip(values, places, strict=True):
                builder.store(value, _place(builder, args[:3], *place), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, tile_type), build

    @instruction
    def add_products(_typing: Any, tile: Any, a: Any, a_step: Any, b: Any) -> Any:
        def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            sums = cgutils.unpack_tuple(builder, args[0], len(places))
            columns = cgutils.unpack_tuple(builder, args[3], vectors)
            for row in range(rows):
                place = builder.add(args[1], builder.mul(args[2], I64(row)))
                factor = builder.load(pointer(builder, place, F32), align=4)
                factors = spread(builder, factor, f32x16.llvm)
                for vector, column in enumerate(columns):
                    i = row * vectors + vector
                    operands = [factors, column, sums[i]]
                    sums[i] = call_llvm(builder, "rllama_fma", f32x16.llvm, operands)
            return cgutils.pack_array(builder, sums)

        operand = types.UniTuple(f32x16, vectors)
        return tile_type(tile_type, types.int64, types.int64, operand), build

    return TileOperations(zero, load, store, add_products)


def _place(builder: Any, address_and_steps: Any, row: int, vector: int) -> Any:
    """Return a pointer to one vector of a tile in memory."""
    address, row_step, vector_step = address_and_steps
    address = builder.add(address, builder.mul(row_step, I64(row)))
    address = builder.add(address, builder.mul(vector_step, I64(vector)))
    return pointer(builder, address, f32x16.llvm)
