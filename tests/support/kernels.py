"""Calling single kernels from tests: records over arrays, packed matrices, guarded memory."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pyrllama.checkpoints.base import Checkpoint
from pyrllama.cpu import compiler, target
from pyrllama.cpu.records import (
    ACTIVATIONS,
    BLOCK_WORDS,
    BYTES,
    FLOATS,
    MATRIX,
    ROWS_AT_ONCE,
    SUMS,
    TILES,
    WIDE_BYTES,
    Record,
    Records,
)
from pyrllama.cpu.scratch import panel_bytes, round_up, spare_rows
from pyrllama.cpu.team import Team
from pyrllama.cpu.weights import PACKED, Matrices
from pyrllama.model_config import ModelConfig
from pyrllama.quants import block_size, dequantize, quantize, row_bytes, type_size
from pyrllama.tensors import Tensor, TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray

    from pyrllama.cpu.target import Isa

each_isa = pytest.mark.parametrize("isa", target.supported(), ids=lambda isa: isa.name)
"""Runs a test on every instruction set of this machine."""
EXACT_ISAS = tuple(isa for isa in target.supported() if not isa.has("amx-bf16"))
"""Where results are the same bits however work is cut; matrix tiles have tests of their own."""
each_exact_isa = pytest.mark.parametrize("isa", EXACT_ISAS, ids=lambda isa: isa.name)
TYPES = tuple(PACKED)
"""Every type that the kernels run: F32, F16, BF16, Q8_0, Q4_0."""
QUANTISED = tuple(kind for kind in TYPES if PACKED[kind].form != FLOATS)
UNQUANTISED = tuple(kind for kind in TYPES if PACKED[kind].form == FLOATS)

GUARD_BYTES = 192
GUARD = 0xA5


def use_isa(monkeypatch: pytest.MonkeyPatch, isa: Isa) -> None:
    """Make everything that chooses an instruction set choose this one."""
    monkeypatch.setenv(target.ISA_VARIABLE, isa.name)


def call(name: str, isa: Isa, *arguments: int) -> None:
    """Run a kernel: ``call("layout.row_f32", isa, matrix, row, out)``."""
    compiler.load(name, isa).call(*map(int, arguments))


class Guarded:
    """A zeroed array, on a cache line, with bytes around it that no kernel may write.

    ``misaligned`` moves it that many bytes off the cache line.
    """

    def __init__(
        self, shape: int | tuple[int, ...], dtype: DTypeLike, *, misaligned: int = 0
    ) -> None:
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._memory = np.full(n_bytes + 2 * GUARD_BYTES + 64, GUARD, np.uint8)
        start = GUARD_BYTES + -(self._memory.ctypes.data + GUARD_BYTES) % 64 + misaligned
        self._span = slice(start, start + n_bytes)
        self.array: NDArray[Any] = self._memory[self._span].view(dtype).reshape(shape)
        self.array[...] = 0

    @property
    def address(self) -> int:
        """Where the array begins."""
        return self._memory.ctypes.data + self._span.start

    def check(self) -> None:
        """Fail if a byte outside the array was written."""
        assert np.all(self._memory[: self._span.start] == GUARD), "written before the array"
        assert np.all(self._memory[self._span.stop :] == GUARD), "written behind the array"


def memory_at(address: int, n_bytes: int) -> NDArray[np.uint8]:
    """Return a copy of the bytes at an address."""
    return np.frombuffer(ctypes.string_at(address, n_bytes), np.uint8)


class OneMatrix(Checkpoint):
    """A checkpoint of one matrix, of given stored rows: ``(rows, bytes per row)`` uint8."""

    NAME = "matrix.weight"

    def __init__(self, stored: NDArray[np.uint8], kind: TensorType, cols: int) -> None:
        self.path, self.format, self.config = Path("memory"), "one matrix", CONFIG
        self.metadata: Mapping[str, Any] = {}
        self._tensor = Tensor(TensorInfo(self.NAME, (len(stored), cols), kind), stored)
        self.tensors = {self.NAME: self._tensor.info}
        self.released: list[str] = []

    def read(self, name: str) -> Tensor:
        return self._tensor

    def release(self, name: str) -> None:
        self.released.append(name)

    def close(self) -> None:
        pass


CONFIG = ModelConfig("llama", 1, 1, 1, 1, 1, 2, 1, 1e-5, 1e4, 1)


class PackedMatrix:
    """A matrix that went through ``weights.Matrices``, and the MATRIX record of it."""

    def __init__(self, stored: NDArray[np.uint8], kind: TensorType, cols: int, isa: Isa,
                 held_as: TensorType | None = None, threads: int = 1) -> None:  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            use_isa(patch, isa)
            self._matrices = Matrices(OneMatrix(stored, kind, cols), [OneMatrix.NAME], held_as)
            team = Team(threads)
            try:
                self._matrices.pack_all(team, None)
            finally:
                team.close()
        (self.kind,) = self._matrices.kinds
        self.address = self._matrices.address(OneMatrix.NAME)
        self.record = read_record(MATRIX, self.address)
        n_bytes = self.record["n_groups"] * self.record["bytes_a_group"]
        self.data = memory_at(self.record["data"], n_bytes).reshape(self.record["n_groups"], -1)


# Where the float16 of a stored block stand, in bytes.
_HALVES = {
    TensorType.Q4_1: (0, 2), TensorType.Q5_1: (0, 2), TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2), TensorType.Q2_K: (80, 82), TensorType.Q3_K: (108,),
    TensorType.Q6_K: (208,), TensorType.TQ1_0: (52,), TensorType.TQ2_0: (64,),
    TensorType.MXFP4: (), TensorType.IQ1_M: (),
}  # fmt: skip
_EXTREME_HALVES = np.array([0.0, -0.0, 2.0**-24, -(2.0**-20), 2.0**-14, -0.5, 1.0], np.float16)


def random_halves(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float | None
) -> NDArray[np.float16]:
    """Return scales of every kind, mostly around 1/100 but some zero, denormal or negative.

    With ``scale`` they are around that instead, and of the usual kind.
    """
    if scale is not None:
        return rng.normal(0, scale, shape).astype(np.float16)
    usual = rng.normal(0, 0.01, shape).astype(np.float16)
    return np.where(rng.random(shape) < 0.2, rng.choice(_EXTREME_HALVES, shape), usual)


def usual_stored(
    kind: TensorType, shape: tuple[int, int], seed: int, std: float
) -> NDArray[np.uint8]:
    """Return stored rows whose numbers, ``(rows, cols)``, have a standard deviation."""
    rows, cols = shape
    first = dequantize(kind, random_stored(kind, rows, cols, seed, 0.01), cols)
    return random_stored(kind, rows, cols, seed, 0.01 * std / float(first.std()))


def random_stored(
    kind: TensorType, rows: int, cols: int, seed: int, scale: float | None = None
) -> NDArray[np.uint8]:
    """Return stored rows of random bits whose numbers are finite, ``(rows, bytes of a row)``.

    Scales are as ``random_halves`` says; MXFP4 and unquantised types have none to choose.
    """
    rng = np.random.default_rng(seed)
    if kind in UNQUANTISED:
        return quantize(kind, rng.normal(0, 1, (rows, cols)).astype(np.float32))
    n_bytes = type_size(kind)
    blocks = rng.integers(0, 256, (rows * cols // block_size(kind), n_bytes), dtype=np.uint8)
    for place in _HALVES.get(kind, (0,)):
        halves = random_halves(rng, (len(blocks), 1), scale)
        blocks[:, place : place + 2] = halves.view(np.uint8)
    if kind is TensorType.MXFP4:
        usual = [121, 122] if scale else [0, 1, 2, 3, 118, 121, 124, 127, 130]
        blocks[:, 0] = rng.choice(usual, len(blocks))
    if kind is TensorType.IQ1_M:  # four bits of its scale stand above each of four words
        bits = random_halves(rng, (len(blocks), 1), scale).view(np.uint16)
        words = blocks[:, 48:].view(np.uint16)
        words &= np.uint16(0x0FFF)
        words |= (bits >> np.array([0, 4, 8, 12], np.uint16) & np.uint16(15)) << np.uint16(12)
    return blocks.reshape(rows, -1)


def column_counts(kind: TensorType, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return numbers of columns that a type can have: those given, or as many super-blocks."""
    columns = block_size(kind)
    return counts if columns <= 32 else tuple(columns * n for n in range(1, len(counts) + 1))


def pack(
    values: NDArray[np.float32], kind: TensorType, isa: Isa, held_as: TensorType | None = None
) -> PackedMatrix:
    """Store values in one type and pack them, in another one where ``held_as`` says so."""
    return PackedMatrix(quantize(kind, values), kind, values.shape[1], isa, held_as)


def rounded(values: NDArray[np.float32], kind: TensorType) -> NDArray[np.float32]:
    """Return the values as a type stores them."""
    return dequantize(kind, quantize(kind, values), values.shape[1])


def with_scales_of_one(stored: NDArray[np.uint8], kind: TensorType) -> NDArray[np.uint8]:
    """Return stored rows whose float16 are all 1 (or 2^0), so that their numbers are whole.

    They are multiples of an eighth in the codebooks' types.
    """
    blocks = stored.reshape(-1, type_size(kind)).copy()
    for place in _HALVES.get(kind, (0,)):
        blocks[:, place : place + 2] = np.float16(1).reshape(1).view(np.uint8)
    if kind is TensorType.MXFP4:
        blocks[:, 0] = 128
    if kind is TensorType.IQ1_M:
        words = blocks[:, 48:].view(np.uint16)
        words &= np.uint16(0x0FFF)
        words[:, 2:] |= np.array([0xC000, 0x3000], np.uint16)  # 0x3C00, four bits a word
    return blocks.reshape(stored.shape)


def alike_bytes(kind: TensorType) -> NDArray[np.uint8]:
    """Return 32 rows of one super-block or two blocks that have all levels alike, or nearly so.

    All their bytes are the same, but that scales of a float16 are 1.
    """
    fills = np.array([*range(0, 256, 17), 0x80, 0x7F, 0x0F, 0xF0], np.uint8)
    (cols,) = column_counts(kind, (64,))
    rows = np.resize(fills, 32)[:, None]
    return with_scales_of_one(np.repeat(rows, row_bytes(kind, cols), axis=1), kind)


def read_record(record: Record, address: int) -> dict[str, int]:
    """Return the integer fields of a record."""
    words = memory_at(address, record.n_bytes).view(np.int64).tolist()
    return dict(zip(record.integers, words, strict=False))


def activation_block(kind: TensorType) -> int:
    """Return how many columns of activations share a scale in products of a quantised type."""
    return PACKED[kind].columns


class QuantisedArrays:
    """Rows of activations as int8, with their record's fields."""

    def __init__(self, rows: int, n_cols: int) -> None:
        n_blocks, sixes = n_cols // 32, -(-rows // ROWS_AT_ONCE)
        self._q = Guarded((rows, n_cols), np.int8)
        self._scales = Guarded((rows, n_blocks), np.float32)
        self._sums = Guarded((rows, n_blocks, SUMS), np.int32)
        self._scaled_sums = Guarded((rows, n_blocks, SUMS), np.float32)
        self._bytes = Guarded((sixes, n_blocks, BLOCK_WORDS, ROWS_AT_ONCE), np.int32)
        self.q, self.scales, self.sums = self._q.array, self._scales.array, self._sums.array
        self.scaled_sums, self.bytes = self._scaled_sums.array, self._bytes.array
        self.fields = {
            "q": self._q.address,
            "q_stride": n_cols,
            "scales": self._scales.address,
            "sums": self._sums.address,
            "scaled_sums": self._scaled_sums.address,
            "block_stride": 4 * n_blocks,
            "bytes": self._bytes.address,
            "bytes_stride": self.bytes.strides[0],
        }

    def check(self) -> None:
        """Fail if a byte outside the arrays was written."""
        for guarded in vars(self).values():
            if isinstance(guarded, Guarded):
                guarded.check()


class ActivationArrays:
    """Rows of activations, padded with zeros to whole blocks of 32, with their record."""

    def __init__(self, x: NDArray[np.float32]) -> None:
        rows, cols = x.shape
        self.n_cols = round_up(cols, 32)
        sixes = -(-rows // ROWS_AT_ONCE)
        self._x = Guarded((sixes * ROWS_AT_ONCE, self.n_cols), np.float32)
        self._floats = Guarded((sixes, self.n_cols, ROWS_AT_ONCE), np.float32)
        self._tiles = Guarded((spare_rows(rows), self.n_cols), np.uint16)
        self._x.array[:rows, :cols] = x
        self.x, self.floats, self.tiles = (
            self._x.array[:rows], self._floats.array, self._tiles.array
        )  # fmt: skip
        self.blocks, self.super_blocks = (QuantisedArrays(rows, self.n_cols) for _ in range(2))
        self._records = Records(ACTIVATIONS, 2)
        for index, quantised in enumerate((self.blocks, self.super_blocks)):
            self._records.set(
                index,
                x=self._x.address,
                x_stride=4 * self.n_cols,
                n_cols=self.n_cols,
                floats=self._floats.address,
                floats_stride=self.floats.strides[0],
                tiles=self._tiles.address,
                wide=self._records.address_of(1),
                **quantised.fields,
            )
        self.address = self._records.address

    @property
    def forms(self) -> int:
        """Every form that rows of so many columns can have."""
        whole = self.n_cols % 256 == 0
        return FLOATS | BYTES | TILES | (WIDE_BYTES if whole else 0)

    def prepare(self, isa: Isa, forms: int | None = None) -> None:
        """Bring every row into all forms with the kernel, which must stay inside its arrays."""
        wanted = self.forms if forms is None else forms
        for row in range(len(self.x)):
            kernel = compiler.load("activations.prepare_kernel", isa)
            kernel.call(self.address, row, wanted, 0, self.n_cols // 32)
        self.check()

    def prepare_sixes(self, isa: Isa, forms: int, first: int, last: int) -> None:
        """Bring blocks of all rows, six by six, into some forms."""
        compiler.load("sixes.prepare_kernel", isa).call(
            self.address, len(self.x), forms, first, last
        )
        self.check()

    def check(self) -> None:
        """Fail if anything outside the arrays was written."""
        for guarded in (self._x, self._floats, self._tiles, self.blocks, self.super_blocks):
            guarded.check()


def stored_product(
    stored: NDArray[np.uint8], kind: TensorType, x: NDArray[np.float32], isa: Isa
) -> Product:
    """Return the product of stored rows, packed as they are, with rows of activations."""
    return Product(PackedMatrix(stored, kind, x.shape[1], isa), x, isa)


class Product:
    """A packed matrix times rows of activations, by the product kernels of its type.

    One row goes to ``matvec`` and several to ``matmul``, or to matrix tiles.
    """

    def __init__(
        self,
        matrix: PackedMatrix,
        x: NDArray[np.float32],
        isa: Isa,
        *,
        tiled: bool = False,
    ) -> None:
        self.matrix = matrix
        self.n_groups = matrix.record["n_groups"]
        self.activations = ActivationArrays(x)
        self.activations.prepare(isa)
        suffix = PACKED[matrix.kind].kernels
        if not tiled:
            self._matvec = compiler.load(f"matvec.{suffix}", isa)
        self._matmul = compiler.load(f"{'tiles' if tiled else 'matmul'}.{suffix}", isa)

    def run_row(
        self,
        row: int = 0,
        *,
        pieces: tuple[int, ...] = (),
        onto: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return the products of one row, ``(rows of the matrix padded to 16,)``.

        ``pieces`` are the group numbers at which the work is cut; ``onto`` is added to.
        """
        out = Guarded(16 * self.n_groups, np.float32)
        out.array[...] = np.nan if onto is None else onto
        for first, last in itertools.pairwise((0, *pieces, self.n_groups)):
            self._matvec.call(
                self.matrix.address, self.activations.address, row, out.address,
                first, last, int(onto is not None),
            )  # fmt: skip
        out.check()
        return np.array(out.array)

    def run(
        self, *, pieces: tuple[int, ...] = (), onto: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return the products of all rows, ``(n_rows, rows of the matrix padded to 16)``."""
        n_rows = len(self.activations.x)
        # An odd group at the end may write where one more would stand.
        out = Guarded((spare_rows(n_rows), 16 * round_up(self.n_groups, 2)), np.float32)
        out.array[...] = np.nan
        if onto is not None:
            out.array[:n_rows, : 16 * self.n_groups] = onto
        panel = Guarded(panel_bytes(), np.uint8)
        for first, last in itertools.pairwise((0, *pieces, self.n_groups)):
            self._matmul.call(
                self.matrix.address, self.activations.address, n_rows, out.address,
                out.array.strides[0], first, last, int(onto is not None), panel.address,
            )  # fmt: skip
        out.check()
        panel.check()
        return np.array(out.array[:n_rows, : 16 * self.n_groups])

    def run_rows(self) -> NDArray[np.float32]:
        """Return the products of all rows, each multiplied alone."""
        return np.stack([self.run_row(row) for row in range(len(self.activations.x))])
