"""A block of 32 columns of six rows of activations, from float32 to bytes, in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from llvmlite import ir
from numba import types

from pyrllama.cpu.norm import ROUNDER
from pyrllama.cpu.records import ROWS_AT_ONCE, START_OFFSET
from pyrllama.cpu.six_layout import (
    BLOCK_BYTES,
    COLUMN_BYTES,
    SCALED_SUMS,
    SCALES,
    SUMS_OF_BLOCKS,
    SUMS_OF_HALVES,
    SUMS_OF_ROWS,
)
from pyrllama.cpu.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    call_llvm,
    constant,
    f32x16,
    i32x16,
    instruction,
    pointer,
    shuffle,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS = ROWS_AT_ONCE
WORDS = 8
"""Words of four columns in a block."""
_HALF = WORDS // 2 * ROWS
"""Words of six rows that are 16 columns."""
_I32X16, _I16X32 = ir.VectorType(I32, 16), ir.VectorType(I16, 32)
_I32X8, _F32X8, _I8X16 = ir.VectorType(I32, 8), ir.VectorType(F32, 8), ir.VectorType(I8, 16)


def _bytes_of_row(builder: Any, x: Any, factor: Any) -> Any:
    """Return 32 float32 times a factor as eight words of bytes.

    What rounds a number leaves it in the lowest bits.
    """
    halves = []
    for place in (x, builder.add(x, I64(64))):
        values = builder.load(pointer(builder, place, f32x16.llvm), align=1)
        values = builder.fmul(values, spread(builder, factor, f32x16.llvm))
        bits = builder.bitcast(builder.fadd(values, constant(f32x16, float(ROUNDER))), _I32X16)
        halves.append(builder.trunc(bits, _I8X16))
    return builder.bitcast(shuffle(builder, halves[0], halves[1], list(range(32))), _I32X8)


def _interleaved(builder: Any, rows: Sequence[Any]) -> list[Any]:
    """Return the words of six rows, a word of each and then the next one of each."""
    pairs = [
        shuffle(builder, rows[row], rows[row + 1], list(range(2 * WORDS)))
        for row in range(0, ROWS, 2)
    ]
    vectors = []
    for first in range(0, WORDS * ROWS, 16):
        wanted = [divmod(place, ROWS) for place in range(first, first + 16)]  # word, row
        lanes = [WORDS * (row % 2) + word for word, row in wanted]
        of_four = [
            lane + 16 * (row in {2, 3}) for lane, (_, row) in zip(lanes, wanted, strict=True)
        ]
        joined = shuffle(builder, pairs[0], pairs[1], of_four)
        of_all = [
            lane + 16 if row in {4, 5} else place
            for place, (lane, (_, row)) in enumerate(zip(lanes, wanted, strict=True))
        ]
        vectors.append(shuffle(builder, joined, pairs[2], of_all))
    return vectors


def _pairs_of_words(builder: Any, words: Any) -> Any:
    """Return the sums of the first two and of the last two bytes of every word."""
    halves, byte = builder.bitcast(words, _I16X32), ir.Constant(_I16X32, [I16(8)] * 32)
    low = builder.ashr(builder.shl(halves, byte), byte)
    return builder.bitcast(builder.add(low, builder.ashr(halves, byte)), _I32X16)


def _add_halves(builder: Any, a: Any, b: Any) -> Any:
    """Add numbers of 16 bits."""
    kind = ir.VectorType(I16, 2 * a.type.count)
    return builder.bitcast(builder.add(builder.bitcast(a, kind), builder.bitcast(b, kind)), a.type)


def _sums_of_halves(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """Return the pairs of sums of the first and of the last 16 columns, a lane for each row."""
    pairs = [_pairs_of_words(builder, words) for words in vectors]
    sums = []
    for begin in (0, _HALF):
        total = None
        for first in range(begin, begin + _HALF, ROWS):
            source, lane = divmod(first, 16)
            following = pairs[min(source + 1, len(pairs) - 1)]
            lanes = [min(lane + row, 31) for row in range(8)]
            words = shuffle(builder, pairs[source], following, lanes)
            total = words if total is None else _add_halves(builder, total, words)
        sums.append(total)
    return sums


def _magnitudes(builder: Any, words: Any) -> Any:
    """Return the magnitudes of bytes."""
    kind = ir.VectorType(I8, 64)
    arguments = [builder.bitcast(words, kind), ir.IntType(1)(0)]
    return builder.bitcast(call_llvm(builder, "llvm.abs.v64i8", kind, arguments), words.type)


def _whole(builder: Any, pairs: Any) -> Any:
    """Return both sums of every pair together."""
    half = ir.Constant(_I32X8, [I32(16)] * 8)
    low = builder.ashr(builder.shl(pairs, half), half)
    return builder.add(low, builder.ashr(pairs, half))


def _among_six(builder: Any, pairs: Any) -> Any:
    """Return pairs of sums as products begin with them; see ``six_layout.py``."""
    in_pairs = builder.trunc(call_llvm(builder, "rllama_has_assembly", I64, []), ir.IntType(1))
    offset = ir.Constant(_I32X8, [I32(-START_OFFSET)] * 8)
    return builder.select(in_pairs, pairs, builder.mul(_whole(builder, pairs), offset))


def _in_words(builder: Any, first: Any, second: Any) -> Any:
    """Return two vectors of numbers as 16 bits each."""
    low = builder.and_(first, ir.Constant(_I32X8, [I32(0xFFFF)] * 8))
    return builder.or_(low, builder.shl(second, ir.Constant(_I32X8, [I32(16)] * 8)))


def _greater(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


def _store_rows(builder: Any, vector: Any, place: Any) -> None:
    """Store the lanes of six rows and nothing behind them."""
    lanes = shuffle(builder, vector, vector, list(range(ROWS)))
    builder.store(lanes, pointer(builder, place, lanes.type), align=4)


class _Block(NamedTuple):
    """Of six rows, in registers; of every sum a lane for each row."""

    words: list[Any]
    first: Any
    """Pairs of sums of the first 16 columns."""
    last: Any
    both: Any


def _put(builder: Any, x: Any, stride: Any, factors: Any, scale: Any, out: Any) -> _Block:
    """Write a block up to the pairs of sums."""
    rows = []
    for row in range(ROWS):
        place = pointer(builder, builder.add(factors, I64(4 * row)), F32)
        source = builder.add(x, builder.mul(stride, I64(row)))
        rows.append(_bytes_of_row(builder, source, builder.load(place, align=4)))
    vectors = _interleaved(builder, rows)
    for i, words in enumerate(vectors):
        place = builder.add(out, I64(64 * i))
        builder.store(words, pointer(builder, place, _I32X16), align=4)
    first, last = _sums_of_halves(builder, vectors)
    both = _add_halves(builder, first, last)
    _store_rows(builder, scale, builder.add(out, I64(SCALES)))
    for i, sums in enumerate((both, first, last)):
        _store_rows(
            builder,
            _among_six(builder, sums),
            builder.add(out, I64(SUMS_OF_ROWS + i * COLUMN_BYTES)),
        )
    return _Block(vectors, first, last, both)


@instruction
def put_block(_typing: Any, x: Any, stride: Any, factors: Any, scales: Any, out: Any) -> Any:
    """Write a block of six rows, whose float32 are ``stride`` bytes apart, times their factors.

    Behind the words stand the scales, the pairs of sums and the sums times the scales.
    """

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        x, stride, factors, scales, out = args
        scale = builder.load(pointer(builder, scales, _F32X8), align=4)
        block = _put(builder, x, stride, factors, scale, out)
        for i, pairs in enumerate((block.both, block.first, block.last)):
            scaled = builder.fmul(builder.sitofp(_whole(builder, pairs), _F32X8), scale)
            _store_rows(builder, scaled, builder.add(out, I64(SCALED_SUMS + i * COLUMN_BYTES)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), build


@instruction
def put_wide_blocks(
    _typing: Any, x: Any, stride: Any, factors: Any, scales: Any, out: Any, most: Any
) -> Any:
    """Write two neighbouring blocks of the wide form.

    Returns the greater ones of the first six lanes of ``most`` and of the sums of magnitudes of 16
    columns, an ``i32x16``.
    """

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        x, stride, factors, scales, out, most = args
        scale = builder.load(pointer(builder, scales, _F32X8), align=4)
        most, sums = shuffle(builder, most, most, list(range(8))), []
        for i in range(2):
            source, place = builder.add(x, I64(128 * i)), builder.add(out, I64(BLOCK_BYTES * i))
            block = _put(builder, source, stride, factors, scale, place)
            halves = [_whole(builder, pairs) for pairs in (block.first, block.last)]
            words = _in_words(builder, halves[0], halves[1])
            _store_rows(builder, words, builder.add(place, I64(SUMS_OF_HALVES)))
            sums.append(builder.add(halves[0], halves[1]))
            sizes = [_magnitudes(builder, words) for words in block.words]
            for pairs in _sums_of_halves(builder, sizes):
                most = _greater(builder, most, _whole(builder, pairs))
        _store_rows(
            builder, _in_words(builder, sums[0], sums[1]), builder.add(out, I64(SUMS_OF_BLOCKS))
        )
        return shuffle(builder, most, most, [*range(8), *range(8)])

    return i32x16(*[types.int64] * 5, i32x16), build


@instruction
def store_six(_typing: Any, place: Any, vector: Any) -> Any:
    """Store the first six lanes of an ``i32x16``."""

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        _store_rows(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, i32x16), build
