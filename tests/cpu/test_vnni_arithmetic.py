"""The arithmetic of the VNNI product kernels, on machines without VNNI.

``vpdpbusd`` is replaced by LLVM code that means the same, so that what surrounds it (the offset
that makes weights unsigned, the sums) is run and not only looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import llvmlite.binding as llvm
import numpy as np
import pytest
from support.kernels import (
    QUANTISED,
    PackedMatrix,
    Product,
    alike_bytes,
    column_counts,
    random_stored,
    with_scales_of_one,
)

from pyrllama import quants
from pyrllama.cpu import compiler, target
from pyrllama.cpu import isa as machine
from pyrllama.cpu.target import AVX512, AVXVNNI, GENERIC, Isa

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.core import TensorType

BITS = {AVX512.name: 512, AVXVNNI.name: 256}


def emulation(bits: int) -> str:
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


@pytest.fixture(params=[AVX512, AVXVNNI], ids=lambda isa: isa.name)
def vnni(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Isa:
    """Return an instruction set whose kernels are compiled with the emulation, for this machine."""
    isa: Isa = request.param
    name, here = f"llvm.x86.avx512.vpdpbusd.{BITS[isa.name]}", target.supported()[0]
    definitions, target_machine = machine.definitions, target.target_machine
    if not here.has("f16c"):
        pytest.skip("the emulation needs a CPU with AVX2 for all the rest")

    def emulated(_isa: Isa) -> str:
        text = definitions(isa)
        declared = [x for x in text.splitlines() if x.startswith("declare") and name in x]
        assert len(declared) == 1
        text = text.replace(declared[0], "").replace(f'@"{name}"', "@vpdpbusd")
        return text + emulation(BITS[isa.name])

    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(machine, "definitions", emulated)
    monkeypatch.setattr(target, "target_machine", lambda _isa: target_machine(here))
    return isa


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_integer_sums_are_exact(
    vnni: Isa, kind: TensorType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cols,) = column_counts(kind, (64,))
    levels = with_scales_of_one(random_stored(kind, 16, cols, 17), kind)
    stored = np.concatenate([levels, alike_bytes(kind)])
    x = np.random.default_rng(17).integers(-127, 128, (6, cols)).astype(np.float32)
    x[0], x[1] = 127, -127
    x[:, ::32] = 127  # every block's scale is 1
    matrix = PackedMatrix(stored, kind, cols, GENERIC)
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_loaded", {})
        product = Product(matrix, x, vnni)
    w = quants.dequantize(kind, stored, cols).astype(np.float64)
    for got in (product.run_rows(), product.run()):
        np.testing.assert_array_equal(got[2:, :16], (x @ w.T)[2:, :16])
        # The ends of the range give sums that float32 does not hold to the last bit.
        np.testing.assert_allclose(got, x @ w.T, rtol=0, atol=1e-6 * np.abs(x @ w.T).max())
