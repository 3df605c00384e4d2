"""Weights on their way from a checkpoint into the packed layout that the kernels read."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyrllama import quants
from pyrllama.cpu import compiler, target
from pyrllama.cpu.formats import BLOCK, FORMATS, ROWS
from pyrllama.cpu.records import FLOATS, LINE, MATRIX, PACKING, Records
from pyrllama.cpu.scratch import huge_pages, round_up
from pyrllama.errors import BackendError, UnsupportedTypeError
from pyrllama.models.llama import is_router
from pyrllama.quants import codebook
from pyrllama.tensors import Tensor, TensorType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.cpu.team import Team
    from pyrllama.tensors import TensorInfo

SLICE_BYTES = 1 << 24
"""Stored bytes that are packed before the file's pages are given back."""
CODEBOOK_SLICE_BYTES = 1 << 20
"""The same where every number takes a byte on the way."""


@dataclass(frozen=True, slots=True)
class Packed:
    """How the tensors of a storage type are held."""

    kernels: str
    """The name of its products' kernels, and of the one that unpacks a row."""
    interleave: str
    columns: int
    """Of a packed block of 16 rows."""
    bytes: int
    form: int
    """The form of activations that its products read, see ``records.py``."""


PACKED = {
    TensorType.F32: Packed("f32", "layout.interleave_32bit", BLOCK, 64 * BLOCK, FLOATS),
    TensorType.F16: Packed("f16", "layout.interleave_16bit", BLOCK, 32 * BLOCK, FLOATS),
    TensorType.BF16: Packed("bf16", "layout.interleave_16bit", BLOCK, 32 * BLOCK, FLOATS),
    **{
        type_: Packed(
            held.name,
            f"layout.interleave_{type_.name.lower()}",
            held.columns,
            held.bytes,
            held.form,
        )
        for type_, held in FORMATS.items()
    },
}
"""Every type that the kernels run."""
MADE_TYPES = (
    TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0
)  # fmt: skip
"""The types that weights can be converted to while they are packed."""


def packed_type(info: TensorInfo, wanted: TensorType | None) -> TensorType:
    """Return the type in which a matrix is held: the wanted one, or as it is stored.

    The routers to experts stay as they are stored.  Columns that are no whole blocks cannot be
    quantised; such a matrix is held in F16.
    """
    kind = info.type if wanted is None or is_router(info.name) else wanted
    if quants.block_size(kind) > 1 and info.shape[-1] % BLOCK:
        return TensorType.F16 if info.type is not TensorType.BF16 else TensorType.BF16
    return kind


def packed_bytes(shape: tuple[int, ...], kind: TensorType) -> int:
    """Return the bytes of a packed matrix, or of those of all experts."""
    packed = PACKED[kind]
    *experts, rows, cols = shape
    n_groups, n_blocks = -(-rows // ROWS), -(-cols // packed.columns)
    n_bytes = n_groups * n_blocks * packed.bytes
    return math.prod(experts) * round_up(n_bytes, LINE) if experts else n_bytes


def check_runs(checkpoint: Checkpoint, name: str, kind: TensorType) -> None:
    """Raise ``UnsupportedTypeError`` for a type that no kernel runs, or converts to."""
    possible: Iterable[TensorType] = PACKED
    if kind is not checkpoint.tensors[name].type:
        possible = MADE_TYPES
    if kind not in possible:
        raise UnsupportedTypeError(
            checkpoint.path,
            f"{name} would be held as {kind.name}, which cannot be; the types that can are "
            f"{quants.names_of(possible)}",
        )


class Arena:
    """Zeroed memory of huge pages for all weights, from which matrices take their places."""

    def __init__(self, n_bytes: int) -> None:
        try:
            self._bytes = huge_pages(max(n_bytes, 1))
        except (OSError, ValueError, OverflowError) as error:
            raise BackendError(
                f"{n_bytes / 1e9:.1f} GB for the weights cannot be had ({error}); choose a smaller "
                f"type with --quantize"
            ) from error
        self._used = 0

    def take(self, n_bytes: int) -> NDArray[np.uint8]:
        """Return the next ``n_bytes``, aligned to a cache line."""
        start = self._used
        self._used = start + round_up(n_bytes, 64)
        return self._bytes[start : start + n_bytes]


def arena_bytes(sizes: Iterable[int]) -> int:
    """Return what an arena must hold for matrices of these sizes."""
    return sum(round_up(size, 64) for size in sizes)


class Matrices:
    """Packed matrices and the MATRIX records that kernels read."""

    def __init__(self, checkpoint: Checkpoint, names: list[str], wanted: TensorType | None) -> None:
        self._checkpoint = checkpoint
        infos = [checkpoint.tensors[name] for name in names]
        counts = [math.prod(info.shape[:-2]) for info in infos]  # experts, or one
        self._index = dict(zip(names, [0, *itertools.accumulate(counts)], strict=False))
        self.kinds = [packed_type(info, wanted) for info in infos]
        for name, kind in zip(names, self.kinds, strict=True):
            check_runs(checkpoint, name, kind)
        self.sizes = [
            packed_bytes(info.shape, kind) for info, kind in zip(infos, self.kinds, strict=True)
        ]
        self._arena = Arena(arena_bytes(self.sizes))
        self._records = Records(MATRIX, sum(counts))
        self._kernels: list[object] = []

    def address(self, name: str) -> int:
        """Return where a matrix's record is; those of the other experts follow it."""
        return self._records.address_of(self._index[name])

    def sizes_by_name(self) -> dict[str, int]:
        """Return the bytes of each tensor in memory."""
        return dict(zip(self._index, self.sizes, strict=True))

    def pack_all(self, team: Team, progress: Callable[[int, int], None] | None) -> None:
        """Read, convert and pack every matrix, one tensor in flight; report bytes packed."""
        done, total = 0, sum(self.sizes)
        for (name, first), kind, size in zip(
            self._index.items(), self.kinds, self.sizes, strict=True
        ):
            if progress:
                progress(done, total)
            tensor = self._checkpoint.read(name)
            for number, matrix in enumerate(matrices_of(tensor)):
                self._pack(first + number, matrix, kind, team)
            del tensor, matrix  # before the next one is read: it may be a copy
            done += size
        if progress:
            progress(total, total)

    def _pack(self, index: int, tensor: Tensor, kind: TensorType, team: Team) -> None:
        packed = PACKED[kind]
        rows, cols = tensor.info.shape
        source = pad_columns(tensor)
        target = self._arena.take(packed_bytes(tensor.info.shape, kind))
        n_cols, n_groups = round_up(cols, BLOCK), round_up(rows, ROWS) // ROWS
        bytes_a_group = n_cols // packed.columns * packed.bytes
        stored = tensor.info.type
        job = PackingJob(stored, kind, n_cols, team)
        slice_bytes = CODEBOOK_SLICE_BYTES if stored in codebook.LEVELS else SLICE_BYTES
        at_once = max(1, slice_bytes // (ROWS * source.shape[1]))
        for first in range(0, n_groups, at_once):
            part = source[first * ROWS : (first + at_once) * ROWS]
            if stored in codebook.LEVELS:
                part = codebook_levels(part, stored)
            job.run(part, target[first * bytes_a_group :], bytes_a_group)
            # The file's pages count as our memory while they are mapped in.
            self._checkpoint.release(tensor.info.name)
        kernels = {field: compiler.load(name) for field, name in kernel_names(kind).items()}
        self._kernels += kernels.values()
        self._records.set(
            index,
            data=target.ctypes.data,
            n_groups=n_groups,
            n_rows=rows,
            n_cols=n_cols,
            bytes_a_group=bytes_a_group,
            form=packed.form,
            **{field: kernel.address for field, kernel in kernels.items()},
        )


def matrices_of(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a matrix as it is, or those of experts one by one."""
    *experts, rows, _ = tensor.info.shape
    for first in range(0, math.prod(experts) * rows, rows):
        info = dataclasses.replace(tensor.info, shape=tensor.info.shape[-2:])
        yield Tensor(info, tensor.data[first : first + rows])


def codebook_levels(rows: NDArray[np.uint8], kind: TensorType) -> NDArray[np.uint8]:
    """Return stored rows without their codebook, as the kernels take them."""
    blocks = rows.reshape(-1, quants.type_size(kind))
    return codebook.as_levels(kind, blocks).reshape(len(rows), -1)


def kernel_names(kind: TensorType) -> dict[str, str]:
    """Return the kernels of a storage type by the field of a MATRIX record that holds them."""
    suffix = PACKED[kind].kernels
    names = {
        "matvec": f"matvec.{suffix}",
        "matmul": f"matmul.{suffix}",
        "row": f"layout.row_{suffix}",
    }
    if target.chosen().has("amx-bf16"):
        names["tile_matmul"] = f"tiles.{suffix}"
    return names


def pad_columns(tensor: Tensor) -> NDArray[np.uint8]:
    """Return a matrix's stored rows with zero columns up to a whole block of 32."""
    rows, cols = tensor.info.shape
    missing = round_up(cols, BLOCK) - cols
    if not missing:
        return tensor.data
    # Only unquantised types can have such a row, so bytes of a column are a whole number.
    padding = np.zeros((rows, missing * (tensor.data.shape[1] // cols)), np.uint8)
    return np.concatenate([tensor.data, padding], axis=1)


class PackingJob:
    """Packs rows of one type as another, with the scratch memory that a team needs for it."""

    def __init__(self, source: TensorType, target: TensorType, n_cols: int, team: Team) -> None:
        packed = PACKED[target]
        self._team = team
        self._pack = compiler.load("layout.pack")
        self._kernels = [compiler.load(packed.interleave)]
        self._counter = np.zeros(8, np.int64)
        self._record = Records(PACKING)
        self._record.set(
            interleave=self._kernels[0].address, counter=self._counter.ctypes.data, n_cols=n_cols
        )
        if source is not target:
            self._convert(f"conversions.dequantise_{source.name.lower()}", target, n_cols)

    def _convert(self, dequantise: str, target: TensorType, n_cols: int) -> None:
        """Go through float32 on the way."""
        row_bytes = quants.row_bytes(target, n_cols)
        work_bytes = round_up(4 * n_cols + ROWS * row_bytes, 64)
        self._work = np.zeros(self._team.n_threads * work_bytes, np.uint8)
        quantise = f"conversions.quantise_{target.name.lower()}"
        self._kernels += [compiler.load(dequantise), compiler.load(quantise)]
        self._record.set(
            dequantise=self._kernels[1].address,
            quantise=self._kernels[2].address,
            row_bytes=row_bytes,
            work=self._work.ctypes.data,
            work_bytes=work_bytes,
        )

    def run(self, rows: NDArray[np.uint8], target: NDArray[np.uint8], bytes_a_group: int) -> None:
        """Pack ``(rows, bytes per row)`` into the beginning of ``target``."""
        self._counter[0] = 0
        self._record.set(
            source=rows.ctypes.data,
            source_row_bytes=rows.shape[1],
            n_rows=len(rows),
            n_groups=round_up(len(rows), ROWS) // ROWS,
            target=target.ctypes.data,
            bytes_a_group=bytes_a_group,
        )
        self._team.run(self._pack, self._record.address)


def read_vector(checkpoint: Checkpoint, name: str, padded: int) -> NDArray[np.float32]:
    """Return a vector (a norm's weights) as float32, padded with zeros."""
    tensor = checkpoint.read(name)
    n = math.prod(tensor.info.shape)
    out = np.zeros(padded, np.float32)
    out[:n] = quants.dequantize(tensor.info.type, tensor.data, n).reshape(-1)
    return out
