"""Packed matrices against a slow statement of the layout that ``layout.py`` documents."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import (
    QUANTISED,
    TYPES,
    UNQUANTISED,
    Guarded,
    OneMatrix,
    PackedMatrix,
    call,
    column_counts,
    each_isa,
    pack,
    random_stored,
)
from support.packed_layout import interleaved

from pyrllama import quants
from pyrllama.cpu.records import BYTES, FLOATS, WIDE_BYTES
from pyrllama.cpu.team import Team
from pyrllama.cpu.weights import (
    MADE_TYPES,
    PACKED,
    Matrices,
    codebook_levels,
    packed_bytes,
    packed_type,
)
from pyrllama.errors import BackendError
from pyrllama.quants import codebook
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from pyrllama.cpu.target import Isa

ROWS = (1, 15, 16, 17, 40)
COLS = {False: (1, 7, 32, 33, 96), True: (32, 96, 160)}
"""Of a float type, and of a quantised one."""
each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)

Bytes = NDArray[np.uint8]


def random(rows: int, cols: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (rows, cols)).astype(np.float32)


def shapes(*kinds: TensorType) -> list[tuple[int, int]]:
    """Return the shapes that can be stored in all of these types."""
    widest = max(kinds, key=quants.block_size)
    return list(product(ROWS, column_counts(widest, COLS[quants.block_size(widest) > 1])))


def test_the_statement_of_the_layout_by_hand() -> None:
    stored = np.arange(18, dtype=np.uint8)[None]  # one block of Q4_0, whose scale is 0x0100
    group = interleaved(stored, TensorType.Q4_0, 32)[0]
    assert group.shape == (32 + 4 * 64,)
    assert group[:3].tolist() == [0, 1, 0]  # the scale of row 0, then that of row 1
    # Columns 0 to 3 are the low bits of bytes 2 to 5, columns 4 to 7 those of bytes 6 to 9.
    assert group[32:37].tolist() == [0x62, 0x73, 0x84, 0x95, 0]
    assert group[96:101].tolist() == [0xEA, 0xFB, 0x0C, 0x1D, 0]
    assert group[160:165].tolist() == [0x00, 0x00, 0x00, 0x00, 0]  # the high bits
    assert group[224:229].tolist() == [0x00, 0x00, 0x10, 0x10, 0]
    halves = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8)  # two rows of two numbers
    group = interleaved(halves, TensorType.F16, 2)[0]
    assert group.shape == (32 * 32,)
    assert group[:5].tolist() == [1, 2, 5, 6, 0]
    assert group[32:37].tolist() == [3, 4, 7, 8, 0]
    assert not group[64:].any()


@each_isa
@each_type
def test_packing_interleaves_rows_and_keeps_their_bits(isa: Isa, kind: TensorType) -> None:
    for rows, cols in shapes(kind):
        stored = random_stored(kind, rows, cols, rows)
        matrix = PackedMatrix(stored, kind, cols, isa)
        assert matrix.kind is kind
        np.testing.assert_array_equal(matrix.data, interleaved(stored, kind, cols))


@each_isa
@each_type
def test_interleaving_stays_inside_the_group(isa: Isa, kind: TensorType) -> None:
    (cols,) = column_counts(kind, (64,))
    for n_rows in (1, 5, 16):
        stored = random_stored(kind, n_rows, cols, n_rows)
        rows = codebook_levels(stored, kind) if kind in codebook.LEVELS else stored
        source = Guarded(rows.shape, np.uint8, misaligned=2)
        source.array[...] = rows
        target = Guarded(packed_bytes((16, cols), kind), np.uint8)
        kernel, n_bytes = PACKED[kind].interleave, rows.shape[1]
        call(kernel, isa, source.address, n_bytes, n_rows, target.address, cols)
        np.testing.assert_array_equal(target.array, interleaved(stored, kind, cols)[0])
        target.check()


@each_isa
@pytest.mark.parametrize("held_as", MADE_TYPES, ids=lambda kind: f"to_{kind.name}")
@each_type
def test_packing_into_another_type_rounds_as_numpy_does(
    isa: Isa, kind: TensorType, held_as: TensorType
) -> None:
    for rows, cols in shapes(kind, held_as):
        source = random_stored(kind, rows, cols, rows)
        values = quants.dequantize(kind, source, cols)
        matrix = PackedMatrix(source, kind, cols, isa, held_as)
        assert matrix.kind is held_as
        stored = source if held_as is kind else quants.quantize(held_as, values)
        packed, expected = matrix.data, interleaved(stored, held_as, cols)
        np.testing.assert_array_equal(
            with_plain_zeros(packed, held_as), with_plain_zeros(expected, held_as)
        )


def with_plain_zeros(data: NDArray[np.uint8], kind: TensorType) -> NDArray[Any]:
    """Return packed bytes as words, where a number or a scale of -0.0 has become 0.0.

    What a level less its offset leaves of a negative scale is one or the other: no sum tells.
    """
    word = np.uint32 if kind is TensorType.F32 else np.uint16
    words = data.view(word).copy()
    words[words == 1 << 8 * words.itemsize - 1] = 0
    return words


@each_isa
def test_the_record_says_how_the_matrix_lies(isa: Isa) -> None:
    for kind in TYPES:
        (cols,) = column_counts(kind, (96,))
        matrix = PackedMatrix(random_stored(kind, 40, cols, 0), kind, cols, isa)
        record = matrix.record
        assert (record["n_groups"], record["n_rows"]) == (3, 40)
        assert record["n_cols"] == cols
        assert record["bytes_a_group"] == packed_bytes((16, cols), kind)
        assert record["data"] % 64 == 0
        of_blocks = WIDE_BYTES if quants.block_size(kind) == 256 else BYTES
        assert record["form"] == (of_blocks if kind in QUANTISED else FLOATS)


@each_isa
@each_type
def test_a_team_packs_what_one_thread_packs(isa: Isa, kind: TensorType) -> None:
    (cols,) = column_counts(kind, (64,))
    stored = random_stored(kind, 200, cols, 1)
    one, three = (PackedMatrix(stored, kind, cols, isa, threads=n).data for n in (1, 3))
    np.testing.assert_array_equal(one, three)


@each_isa
@each_type
def test_a_row_unpacks_to_its_stored_values(isa: Isa, kind: TensorType) -> None:
    for rows, cols in shapes(kind):
        stored = random_stored(kind, rows, cols, 2)
        matrix = PackedMatrix(stored, kind, cols, isa)
        expected = np.zeros((rows, matrix.record["n_cols"]), np.float32)
        expected[:, :cols] = quants.dequantize(kind, stored, cols)
        out = Guarded(expected.shape[1], np.float32, misaligned=4)
        for row in range(rows):
            call(f"layout.row_{PACKED[kind].kernels}", isa, matrix.address, row, out.address)
            np.testing.assert_array_equal(out.array, expected[row])
        out.check()


@each_isa
def test_the_record_names_the_kernels_of_its_type(isa: Isa) -> None:
    addresses = {}
    for kind in TYPES:
        (cols,) = column_counts(kind, (32,))
        record = PackedMatrix(random_stored(kind, 16, cols, 0), kind, cols, isa).record
        addresses[kind] = record["matvec"], record["matmul"], record["row"]
    assert all(map(all, addresses.values()))
    kernels = {kind: PACKED[kind].kernels for kind in TYPES}
    assert len(set(addresses.values())) == len(set(kernels.values()))
    assert addresses[TensorType.TQ1_0] == addresses[TensorType.TQ2_0]


# --- which type a matrix is held in -----------------------------------------------------------


def info(kind: TensorType, cols: int) -> TensorInfo:
    return TensorInfo("matrix.weight", (8, cols), kind)


@each_type
def test_a_matrix_is_held_as_it_is_stored_unless_another_type_is_wanted(kind: TensorType) -> None:
    assert packed_type(info(kind, 256), None) is kind
    for wanted in TYPES:
        assert packed_type(info(kind, 256), wanted) is wanted


@pytest.mark.parametrize("cols", [1, 31, 33, 172])
@pytest.mark.parametrize("wanted", QUANTISED, ids=lambda kind: kind.name)
def test_columns_that_are_no_whole_blocks_are_held_in_half_precision(
    cols: int, wanted: TensorType
) -> None:
    assert packed_type(info(TensorType.F32, cols), wanted) is TensorType.F16
    assert packed_type(info(TensorType.F16, cols), wanted) is TensorType.F16
    assert packed_type(info(TensorType.BF16, cols), wanted) is TensorType.BF16
    for kind in UNQUANTISED:
        assert packed_type(info(kind, cols), None) is kind
        assert packed_type(info(TensorType.F32, cols), kind) is kind


@each_isa
def test_a_matrix_of_such_columns_is_packed_as_float16(isa: Isa) -> None:
    values = random(20, 33, seed=3)
    matrix = pack(values, TensorType.F32, isa, held_as=TensorType.Q4_0)
    assert matrix.kind is TensorType.F16
    stored = quants.quantize(TensorType.F16, values)
    np.testing.assert_array_equal(matrix.data, interleaved(stored, TensorType.F16, 33))


# --- loading ----------------------------------------------------------------------------------


def test_loading_reports_bytes_and_gives_pages_back() -> None:
    checkpoint = OneMatrix(quants.quantize(TensorType.F32, random(40, 96)), TensorType.F32, 96)
    matrices = Matrices(checkpoint, [OneMatrix.NAME], TensorType.Q8_0)
    reports: list[tuple[int, int]] = []
    team = Team(1)
    matrices.pack_all(team, lambda done, total: reports.append((done, total)))
    team.close()
    n_bytes = 3 * 3 * 544
    assert matrices.sizes == [n_bytes]
    assert reports == [(0, n_bytes), (n_bytes, n_bytes)]
    assert checkpoint.released == [OneMatrix.NAME]


def test_weights_beyond_the_memory_are_a_named_error() -> None:
    huge = TensorInfo(OneMatrix.NAME, (1 << 40, 1 << 20), TensorType.F32)
    checkpoint = OneMatrix(np.zeros((1, 4), np.uint8), TensorType.F32, 1)
    checkpoint.tensors = {OneMatrix.NAME: huge}
    with pytest.raises(BackendError, match=r"GB for the weights cannot be had.*--quantize"):
        Matrices(checkpoint, [OneMatrix.NAME], None)
