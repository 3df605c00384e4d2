"""Products on matrix tiles against the reference: on AMX where it is, else on an emulation.

The emulation replaces AMX's intrinsics by LLVM code that does the same on memory, so that what
surrounds them (the panels, the tiles' order, what is loaded and stored) is run on any machine.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.kernels import (
    QUANTISED,
    TYPES,
    PackedMatrix,
    Product,
    column_counts,
    random_stored,
)
from support.packed_layout import plain_scales

from pyrllama import quants
from pyrllama.cpu import compiler, target
from pyrllama.cpu import isa as machine
from pyrllama.cpu.scratch import round_up
from pyrllama.cpu.target import AMX
from pyrllama.quants import type_size

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.core import TensorType

ROUNDING = 2.0**-7
"""Of the sum of magnitudes: two factors, each rounded to 8 bits, a 2^-8 off at most."""
TINY = 1e-30
"""Added to magnitudes: rows of scales that are all zero have none."""
each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)

EMULATION = """
@tiles = internal global [8192 x i8] zeroinitializer, align 64

define internal void @ldtilecfg(ptr %p) noinline { ret void }
define internal void @tilerelease() noinline { ret void }

define internal ptr @tile(i8 %t) {
  %n = zext i8 %t to i64
  %offset = shl i64 %n, 10
  %p = getelementptr i8, ptr @tiles, i64 %offset
  ret ptr %p
}

define internal void @tilezero(i8 %t) noinline {
  %p = call ptr @tile(i8 %t)
  call void @llvm.memset.p0.i64(ptr %p, i8 0, i64 1024, i1 false)
  ret void
}

define internal void @rows(ptr %to, i64 %to_stride, ptr %from, i64 %from_stride) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %a = mul i64 %i, %to_stride
  %b = mul i64 %i, %from_stride
  %pa = getelementptr i8, ptr %to, i64 %a
  %pb = getelementptr i8, ptr %from, i64 %b
  %v = load <16 x i32>, ptr %pb, align 1
  store <16 x i32> %v, ptr %pa, align 1
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, 16
  br i1 %more, label %loop, label %done
done:
  ret void
}

define internal void @tileloadd64(i8 %t, ptr %p, i64 %stride) noinline {
  %tile = call ptr @tile(i8 %t)
  call void @rows(ptr %tile, i64 64, ptr %p, i64 %stride)
  ret void
}

define internal void @tilestored64(i8 %t, ptr %p, i64 %stride) noinline {
  %tile = call ptr @tile(i8 %t)
  call void @rows(ptr %p, i64 %stride, ptr %tile, i64 64)
  ret void
}

define internal void @tdpbf16ps(i8 %c, i8 %a, i8 %b) noinline {
entry:
  %pc = call ptr @tile(i8 %c)
  %pa = call ptr @tile(i8 %a)
  %pb = call ptr @tile(i8 %b)
  br label %loop
loop:  ; over 16 rows of a and 16 pairs of columns
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %row = lshr i64 %i, 4
  %pair = and i64 %i, 15
  %row_c = getelementptr [64 x i8], ptr %pc, i64 %row
  %sum = load <16 x float>, ptr %row_c, align 1
  %at_a = getelementptr i32, ptr %pa, i64 %i
  %word_a = load i32, ptr %at_a, align 1
  %one = insertelement <16 x i32> poison, i32 %word_a, i32 0
  %a_pair = shufflevector <16 x i32> %one, <16 x i32> poison, <16 x i32> zeroinitializer
  %row_b = getelementptr [64 x i8], ptr %pb, i64 %pair
  %b_pair = load <16 x i32>, ptr %row_b, align 1
  %a0 = shl <16 x i32> %a_pair, splat (i32 16)
  %b0 = shl <16 x i32> %b_pair, splat (i32 16)
  %a1 = and <16 x i32> %a_pair, splat (i32 -65536)
  %b1 = and <16 x i32> %b_pair, splat (i32 -65536)
  %fa0 = bitcast <16 x i32> %a0 to <16 x float>
  %fb0 = bitcast <16 x i32> %b0 to <16 x float>
  %fa1 = bitcast <16 x i32> %a1 to <16 x float>
  %fb1 = bitcast <16 x i32> %b1 to <16 x float>
  %p0 = fmul <16 x float> %fa0, %fb0
  %p1 = fmul <16 x float> %fa1, %fb1
  %sum0 = fadd <16 x float> %sum, %p0
  %sum1 = fadd <16 x float> %sum0, %p1
  store <16 x float> %sum1, ptr %row_c, align 1
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, 256
  br i1 %more, label %loop, label %done
done:
  ret void
}

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""


@pytest.fixture
def tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> target.Isa:
    """Return an instruction set with matrix tiles that this machine can run."""
    here = target.supported()[0]
    if here is AMX:
        return AMX
    definitions, target_machine = machine.definitions, target.target_machine

    def emulated(isa: target.Isa) -> str:
        if isa is not AMX:
            return definitions(isa)
        text = re.sub(r'@"llvm\.x86\.(tile|ldtile|tdp)', r'@"\1', definitions(AMX))
        names = "ldtilecfg|tilerelease|tilezero|tileloadd64|tilestored64|tdpbf16ps"
        text = re.sub(rf'^declare .*@"(?:{names})".*$', "", text, flags=re.MULTILINE)
        return text + EMULATION

    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(machine, "definitions", emulated)
    monkeypatch.setattr(
        target, "target_machine", lambda isa: target_machine(here if isa is AMX else isa)
    )
    monkeypatch.setattr(compiler, "_loaded", {})
    return AMX


def random(rows: int, cols: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (rows, cols)).astype(np.float32)


@each_type
@pytest.mark.parametrize(
    ("n_rows", "rows", "cols"),
    [(1, 16, 32), (5, 17, 64), (32, 32, 512), (33, 48, 544), (70, 100, 1056)],
)
def test_tile_products_equal_the_reference(
    tiles: target.Isa, kind: TensorType, n_rows: int, rows: int, cols: int
) -> None:
    cols = round_up(cols, quants.block_size(kind))
    stored, x = random_stored(kind, rows, cols, rows), random(n_rows, cols, cols)
    matrix = PackedMatrix(stored, kind, cols, target.GENERIC)
    got = Product(matrix, x, tiles, tiled=True).run()
    w = quants.dequantize(kind, stored, cols)
    a, b = x.astype(np.float64), w.astype(np.float64)
    error = np.abs(got[:, :rows] - a @ b.T) / (np.abs(a) @ np.abs(b).T + TINY)
    assert error.max() < ROUNDING
    assert not got[:, rows:].any(), "rows of padding"


@each_type
def test_small_whole_numbers_are_exact(tiles: target.Isa, kind: TensorType) -> None:
    stored, cols = whole_numbers(kind)
    w = quants.dequantize(kind, stored, cols)
    x = np.random.default_rng(1).integers(-100, 100, (40, cols)).astype(np.float32)
    matrix = PackedMatrix(stored, kind, cols, target.GENERIC)
    product = Product(matrix, x, tiles, tiled=True)
    np.testing.assert_array_equal(product.run(), x @ w.T)
    onto = random(40, 64, 2)
    np.testing.assert_array_equal(product.run(pieces=(2,), onto=onto), product.run(onto=onto))
    np.testing.assert_allclose(product.run(onto=onto), x @ w.T + onto, atol=2e-2)


def whole_numbers(kind: TensorType) -> tuple[NDArray[np.uint8], int]:
    """Return 64 stored rows of numbers that eight bits hold, and their columns."""
    (cols,) = column_counts(kind, (96,))
    if kind not in QUANTISED:
        return quants.quantize(kind, random_levels(64, cols)), cols
    scales = plain_scales(random_stored(kind, 64, cols, 1).reshape(-1, type_size(kind)), kind)
    return scales.reshape(64, -1), cols


def random_levels(rows: int, cols: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).integers(-8, 8, (rows, cols)).astype(np.float32)


@each_type
def test_pieces_of_one_group_equal_the_whole(tiles: target.Isa, kind: TensorType) -> None:
    (cols,) = column_counts(kind, (64,))
    matrix = PackedMatrix(random_stored(kind, 80, cols, 3), kind, cols, target.GENERIC)
    product = Product(matrix, random(35, cols, 4), tiles, tiled=True)
    np.testing.assert_array_equal(product.run(pieces=(2, 4)), product.run())
