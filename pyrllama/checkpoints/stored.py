"""Tensors as they lie in mapped files, joined or permuted where the model wants it so.

A ``Source`` yields the bytes of one tensor of the model: a ``StoredTensor`` as it lies, a
``JoinedTensor`` out of the shards that hold its parts, a ``PermutedTensor`` whose rows come in
another order, or a ``StackedTensor`` of experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.errors import CorruptFileError
from pyrllama.models.rows import take_rows, to_neighbours

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.tensors import TensorType


class Storage(Protocol):
    """A run of bytes that tensors are cut from."""

    @property
    def size(self) -> int:
        """Bytes that there are."""

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Return bytes without copying them; ``CorruptFileError`` outside of the run."""

    def release(self, offset: int, length: int) -> None:
        """Give pages back to the system; views stay valid."""


@dataclass(frozen=True, slots=True, eq=False)
class FileSlice:
    """A part of a file that is mapped as a whole."""

    file: MappedFile
    start: int
    size: int

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Return bytes of the part; the caller keeps within it."""
        return self.file.view(self.start + offset, length)

    def release(self, offset: int, length: int) -> None:
        """Give the pages back to the system."""
        self.file.release(self.start + offset, length)


class LazyFile:
    """A file that is mapped only while it is in use.

    An unzipped LLaMA-65B has 6,400 files, more than a process may hold open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._file: MappedFile | None = None

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Map the file if it is not, and return bytes of it."""
        if self._file is None:
            self._file = MappedFile(self.path)
        return self._file.view(offset, length)

    def release(self, offset: int, length: int) -> None:
        """Give the pages back and unmap the file as soon as no view is left."""
        if self._file is not None:
            self._file.release(offset, length)
            self.close()

    def close(self) -> None:
        """Unmap the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Source(Protocol):
    """Yields the bytes of one tensor of the model."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in NumPy's order."""

    @property
    def type(self) -> TensorType | None:
        """How the numbers are stored; None where no ``TensorType`` says it."""

    @property
    def stored_as(self) -> str:
        """The file's own word for the type."""

    def rows(self) -> NDArray[np.uint8]:
        """Return the bytes, ``(rows, bytes per row)``; a vector is one row."""

    def release(self) -> None:
        """Give the file's pages back to the system."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A strided tensor over a storage; ``offset`` counts bytes, ``strides`` elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    type: TensorType | None
    stored_as: str

    @property
    def n_bytes(self) -> int:
        """Bytes from the first element to the end of the last one."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return (1 + sum((size - 1) * stride for size, stride in steps)) * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in the order of their indices, without gaps."""
        expected = contiguous_strides(self.shape)
        triples = zip(self.shape, self.strides, expected, strict=True)
        return all(size <= 1 or stride == wanted for size, stride, wanted in triples)

    def check_bounds(self, path: Path, name: str) -> None:
        """Raise ``CorruptFileError`` unless the storage holds every element.

        More elements than the storage has are refused as well: strides of 0 would let a
        small file fill the memory.
        """
        elements = math.prod(self.shape) * self.itemsize
        if self.offset + self.n_bytes > self.storage.size or elements > self.storage.size:
            raise CorruptFileError(
                path,
                f"the tensor {name} of shape {self.shape} and strides {self.strides} does not "
                f"fit the {self.storage.size} bytes of its storage from byte {self.offset} on; "
                f"fetch the file again",
            )

    def rows(self) -> NDArray[np.uint8]:
        """Return a view, or a copy where the elements lie in another order or unaligned."""
        view = self.storage.view(self.offset, self.n_bytes)
        if not self.is_contiguous:
            steps = tuple(stride * self.itemsize for stride in self.strides)
            view = np.lib.stride_tricks.as_strided(
                view, (*self.shape, self.itemsize), (*steps, 1), writeable=False
            )
        rows = self.shape[0] if len(self.shape) > 1 else 1
        data = np.ascontiguousarray(view).reshape(rows, -1 if view.size else 0)
        # Kernels load whole numbers, which a machine may demand at their own alignment.
        return data.copy() if data.ctypes.data % self.itemsize else data

    def release(self) -> None:
        """Give the file's pages back to the system."""
        self.storage.release(self.offset, self.n_bytes)


@dataclass(frozen=True, slots=True)
class CopiedTensor:
    """A tensor that is put together out of parts, all of one type."""

    parts: Sequence[StoredTensor]

    @property
    def type(self) -> TensorType | None:
        """Type of all parts."""
        return self.parts[0].type

    @property
    def stored_as(self) -> str:
        """The file's own word for the type."""
        return self.parts[0].stored_as

    def release(self) -> None:
        """Do nothing: the pages went back as the parts were copied."""


@dataclass(frozen=True, slots=True)
class JoinedTensor(CopiedTensor):
    """A matrix cut along an axis into equal parts, one in each shard."""

    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        sizes = list(self.parts[0].shape)
        sizes[self.axis] *= len(self.parts)
        return tuple(sizes)

    def rows(self) -> NDArray[np.uint8]:
        """Return the parts joined in memory; a part's pages are given back once it is copied."""
        rows, cols = self.shape
        joined = np.empty((rows, cols * self.parts[0].itemsize), np.uint8)
        for part, target in zip(
            self.parts, np.split(joined, len(self.parts), axis=self.axis), strict=True
        ):
            target[:] = part.rows()
            part.release()
        return joined


@dataclass(frozen=True, slots=True)
class PermutedTensor(CopiedTensor):
    """Rows of queries or keys, or numbers of their biases and norms, stored by halves of a head.

    Here they are in the order of neighbours; see ``models/rows.py``.
    """

    n_heads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.parts[0].shape

    def rows(self) -> NDArray[np.uint8]:
        """Return the rows in the order of neighbours, copied."""
        permuted = take_rows(self.parts[0].rows(), to_neighbours(self.shape[0], self.n_heads))
        self.parts[0].release()
        return permuted


@dataclass(frozen=True, slots=True)
class StackedTensor(CopiedTensor):
    """The matrices of a layer's experts, each a tensor of its own in the files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole: ``(experts, rows, cols)``."""
        return (len(self.parts), *self.parts[0].shape)

    def rows(self) -> NDArray[np.uint8]:
        """Return the experts' rows, one expert after the other, copied."""
        n, rows, _ = self.shape
        stacked = np.empty((n * rows, self.parts[0].n_bytes // rows), np.uint8)
        for part, target in zip(self.parts, np.split(stacked, n), strict=True):
            target[:] = part.rows()
            part.release()
        return stacked


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor whose elements lie in index order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
