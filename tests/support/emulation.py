"""Instruction sets that this machine lacks, by LLVM code that does what their instructions do.

The intrinsics in ``isa.py``'s definitions are replaced and the rest is compiled for the machine
at hand, so that what surrounds an instruction is run and not only looked at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import llvmlite.binding as llvm
import pytest

from pyrllama.cpu import compiler, target
from pyrllama.cpu import isa as machine

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.cpu.target import Isa


def emulate(isa: Isa, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let ``isa`` be compiled for this machine, and its kernels be kept below ``folder``.

    Emulated tile registers are one set for all threads.  An instruction set that is here stays
    as it is.
    """
    supported = target.supported()
    here = supported[0]
    if isa in supported:
        return
    if not here.has("f16c"):
        pytest.skip("the emulation needs a CPU with AVX2 for all the rest")
    definitions, target_machine = machine.definitions, target.target_machine

    def emulated(asked: Isa) -> str:
        text = definitions(asked)
        return with_emulations(text, here) if asked is isa else text

    cache_file, loaded = compiler._cache_file, compiler._loaded

    def file_of(name: str, asked: Isa) -> Path:
        emulated_file = folder / "emulated" / f"{isa.name}.{name}.o"
        return emulated_file if asked is isa else cache_file(name, asked)

    patch.setattr(compiler, "_cache_file", file_of)
    patch.setattr(machine, "definitions", emulated)
    patch.setattr(
        target, "target_machine", lambda asked: target_machine(here if asked is isa else asked)
    )
    patch.setattr(target, "supported", lambda: (isa, *supported))
    real = {key: kernel for key, kernel in loaded.items() if key[1] != isa.name}
    patch.setattr(compiler, "_loaded", real)


def with_emulations(text: str, here: Isa) -> str:
    """Replace every intrinsic in definitions that a machine lacks."""
    found = re.search(r'@"llvm\.x86\.avx512\.vpdpbusd\.(\d+)"', text)
    if found and not here.has("avx512vnni"):
        text = re.sub(r"^declare .*vpdpbusd.*$", "", text, flags=re.MULTILINE)
        text = text.replace(found[0], "@vpdpbusd") + vpdpbusd(int(found[1]))
    if not here.has("avx512vnni"):  # assembly cannot be emulated, so kernels must do without
        text = re.sub(r'(rllama_has_pairs"\(\)[^}]*ret i64 )1', r"\g<1>0", text)
    if "pshuf.b.512" in text and not here.has("avx512bw"):
        text = re.sub(r"^declare .*pshuf\.b\.512.*$", "", text, flags=re.MULTILINE)
        text = text.replace('@"llvm.x86.avx512.pshuf.b.512"', "@pshufb") + PSHUFB
    if "llvm.x86.tdp" in text:
        names = "ldtilecfg|tilerelease|tilezero|tileloadd64|tilestored64|tdpbf16ps"
        text = re.sub(rf'^declare .*@"llvm\.x86\.(?:{names})".*$', "", text, flags=re.MULTILINE)
        text = re.sub(rf'@"llvm\.x86\.({names})"', r"@\1", text) + TILES
    return text


def vpdpbusd(bits: int) -> str:
    """Return a definition of ``@vpdpbusd``: sums of four products of unsigned and signed bytes."""
    n = bits // 32
    words = f"<{n} x i32>"
    operand = f"<{bits // 8} x i8>" if llvm.llvm_version_info >= (22,) else words
    splat = {k: f"<{', '.join([f'i32 {k}'] * n)}>" for k in (0, 8, 16, 24)}
    code = f"""
define {words} @vpdpbusd({words} %sum0, {operand} %a, {operand} %b) alwaysinline {{
  %u = bitcast {operand} %a to {words}
  %s = bitcast {operand} %b to {words}
"""
    for i in range(4):
        code += f"""
  %uh{i} = shl {words} %u, {splat[24 - 8 * i]}
  %sh{i} = shl {words} %s, {splat[24 - 8 * i]}
  %ub{i} = lshr {words} %uh{i}, {splat[24]}
  %sb{i} = ashr {words} %sh{i}, {splat[24]}
  %product{i} = mul {words} %ub{i}, %sb{i}
  %sum{i + 1} = add {words} %sum{i}, %product{i}
"""
    return code + f"  ret {words} %sum4\n}}\n"


def _bytes(first: int, count: int) -> str:
    """Return the mask of a shuffle that takes some neighbouring bytes."""
    return f"<{count} x i32> <{', '.join(f'i32 {first + i}' for i in range(count))}>"


PSHUFB = f"""
define <64 x i8> @pshufb(<64 x i8> %a, <64 x i8> %b) alwaysinline {{
  %a0 = shufflevector <64 x i8> %a, <64 x i8> %a, {_bytes(0, 32)}
  %a1 = shufflevector <64 x i8> %a, <64 x i8> %a, {_bytes(32, 32)}
  %b0 = shufflevector <64 x i8> %b, <64 x i8> %b, {_bytes(0, 32)}
  %b1 = shufflevector <64 x i8> %b, <64 x i8> %b, {_bytes(32, 32)}
  %low = call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> %a0, <32 x i8> %b0)
  %high = call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> %a1, <32 x i8> %b1)
  %both = shufflevector <32 x i8> %low, <32 x i8> %high, {_bytes(0, 64)}
  ret <64 x i8> %both
}}

declare <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8>, <32 x i8>)
"""
"""A permutation of bytes within each 16, in two halves."""

TILES = """
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
"""AMX on memory: eight tiles of 16 rows of 64 bytes."""
