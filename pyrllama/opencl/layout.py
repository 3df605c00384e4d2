"""Matrices as the kernels read them: rows of 16-byte units, scales of blocks apart.

The stored bits do not change.  Neighbouring work-items read neighbouring units, so every load
of 16 bytes is coalesced; a file's blocks of 18 or 34 bytes would not even be aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyrllama import quants
from pyrllama.core import BLOCK_TOKENS
from pyrllama.opencl.planes import PLANES, UNIT_COLS, Planes
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

LANES = BLOCK_TOKENS
"""Work-items of a team; a lane attends to one token of a block of the cache."""
FLOAT, HALF = 4, 2
UNIT_BYTES = 16
BLOCK = 32
"""Columns of a block; every row is padded to whole ones."""
SCALE_BYTES = 2
ROW_ALIGN = 256
"""Columns to which the rows of activations of a batch are padded; see ``kernels/rows.cl``."""
ALIGNMENT = 1024
"""Bytes to which a matrix is aligned: every device lets a part of a buffer begin there."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a storage type is laid out."""

    unit_cols: int
    quantised: bool
    planes: Planes | None = None
    """How its blocks are cut where they hold more than a scale and a unit or two."""

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit."""
        return self.planes.unit_bytes if self.planes else UNIT_BYTES

    def side_bytes(self, cols: int) -> int:
        """Return the bytes of a row's scales and of whatever else stands beside its units."""
        if self.planes:
            return self.planes.side_bytes(cols // self.unit_cols)
        return cols // BLOCK * SCALE_BYTES if self.quantised else 0


LAYOUTS = {
    TensorType.F32: Layout(4, quantised=False),
    TensorType.F16: Layout(8, quantised=False),
    TensorType.BF16: Layout(8, quantised=False),
    TensorType.Q8_0: Layout(16, quantised=True),
    TensorType.Q4_0: Layout(32, quantised=True),
    **{kind: Layout(UNIT_COLS, quantised=True, planes=cut) for kind, cut in PLANES.items()},
}
"""Every type that the kernels run."""


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than ``n``."""
    return -(-n // multiple) * multiple


def is_converted(stored: TensorType) -> bool:
    """Whether matrices of a stored type are held in another one, as no kernel runs theirs."""
    return stored not in LAYOUTS and stored in quants.RUNNABLE


def held_type(stored: TensorType, cols: int, wanted: TensorType | None) -> TensorType:
    """Return the type in which a matrix is held: the wanted one, or as it is stored.

    A stored type that no kernel runs becomes Q8_0, which keeps its numbers to 1/254 of the
    greatest in 32, in half the memory of F16.  Columns that are no whole blocks cannot be
    quantised; such a matrix is held in F16.
    """
    kind = stored if wanted is None else wanted
    if kind is stored and is_converted(stored):
        kind = TensorType.Q8_0
    numbers = quants.block_size(kind)
    if numbers > 1 and cols % max(BLOCK, numbers):
        return stored if stored is TensorType.BF16 else TensorType.F16
    return kind


def has_fragments(kind: TensorType) -> bool:
    """Whether units of a type are opened straight into what Tensor Cores read.

    Those that are cut into planes go through local memory; see ``kernels/fragments.cl``.
    """
    return kind is not TensorType.F32 and LAYOUTS[kind].planes is None


@dataclass(frozen=True, slots=True)
class Extent:
    """The sizes of a matrix on the device."""

    kind: TensorType
    rows: int
    cols: int
    """Padded to whole blocks."""

    @property
    def n_units(self) -> int:
        """Units of a row."""
        return self.cols // LAYOUTS[self.kind].unit_cols

    @property
    def unit_bytes(self) -> int:
        """Bytes of all units."""
        return self.rows * self.n_units * LAYOUTS[self.kind].unit_bytes

    @property
    def scale_bytes(self) -> int:
        """Bytes of all scales; none for types without blocks."""
        return self.rows * LAYOUTS[self.kind].side_bytes(self.cols)

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return self.unit_bytes + self.scale_bytes


def extent_of(kind: TensorType, shape: tuple[int, ...]) -> Extent:
    """Return the sizes that a matrix ``(rows, cols)`` has on the device."""
    return Extent(kind, shape[0], round_up(shape[1], BLOCK))


def convert(
    stored: TensorType, rows: NDArray[np.uint8], cols: int, kind: TensorType
) -> NDArray[np.uint8]:
    """Return stored rows in another type; unchanged where it is the same."""
    if stored is kind:
        return rows
    return quants.quantize(kind, quants.dequantize(stored, rows, cols))


def pack(
    kind: TensorType, rows: NDArray[np.uint8], cols: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the units and the scales of stored rows of ``cols`` columns, both C-contiguous."""
    layout = LAYOUTS[kind]
    if layout.quantised:
        blocks = rows.reshape(-1, quants.type_size(kind))
        if layout.planes:
            return layout.planes.pack(blocks, len(rows))
        scales, units = blocks[:, :SCALE_BYTES], blocks[:, SCALE_BYTES:]
        return np.ascontiguousarray(units), np.ascontiguousarray(scales)
    missing = (round_up(cols, BLOCK) - cols) * quants.type_size(kind)
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return np.ascontiguousarray(rows), np.zeros(0, np.uint8)
