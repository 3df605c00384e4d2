"""Opens a safetensors file: a JSON header, and tensors as views of the mapped file.

The ``safetensors`` package reads into memory of its own; here the bytes stay in the map.
Source of the layout: the "Format" section of the README of huggingface/safetensors.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pyrllama.checkpoints.json_file import parse_json
from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.checkpoints.stored import FileSlice, StoredTensor, contiguous_strides
from pyrllama.checkpoints.unpickler import MAX_DIMS
from pyrllama.errors import CorruptFileError
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 64 << 20
METADATA = "__metadata__"
END_OF_SIZES = 1 << 64
"""Beyond what the format can mean; JSON's numbers go on, to products that cannot be printed."""

DTYPES: dict[str, tuple[int, TensorType | None]] = {
    "F32": (4, TensorType.F32),
    "F16": (2, TensorType.F16),
    "BF16": (2, TensorType.BF16),
    "F64": (8, None),
    "I64": (8, None),
    "I32": (4, None),
    "I16": (2, None),
    "I8": (1, None),
    "U64": (8, None),
    "U32": (4, None),
    "U16": (2, None),
    "U8": (1, None),
    "BOOL": (1, None),
    "F8_E4M3": (1, None),
    "F8_E5M2": (1, None),
}
"""Names of types: bytes of an element, and the type where weights can have it."""


class SafetensorsFile:
    """A file of tensors; ``tensors`` has them by name.

    Raises ``CorruptFileError`` for a header that is truncated, no JSON, or says what the file
    does not hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            self.tensors = self._read()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def _read(self) -> dict[str, StoredTensor]:
        length = int.from_bytes(self._file.view(0, LENGTH_BYTES).tobytes(), "little")
        if length > min(self._file.size - LENGTH_BYTES, MAX_HEADER_BYTES):
            raise self._error(f"the header has {length} bytes, the file {self._file.size}")
        header = parse_json(self._file.view(LENGTH_BYTES, length).tobytes(), self.path)
        start = LENGTH_BYTES + length
        body = FileSlice(self._file, start, self._file.size - start)
        header.pop(METADATA, None)
        tensors = {name: self._tensor(name, entry, body) for name, entry in header.items()}
        self._check_overlaps(tensors)
        return tensors

    def _tensor(self, name: str, entry: Any, body: FileSlice) -> StoredTensor:
        match entry:
            case {"dtype": str(dtype), "shape": [*sizes], "data_offsets": [int(begin), int(end)]}:
                shape = tuple(sizes)
            case _:
                raise self._error(f"the tensor {name} has no dtype, shape and two offsets")
        sizes_fit = all(type(size) is int and 0 <= size < END_OF_SIZES for size in shape)
        if len(shape) > MAX_DIMS or not sizes_fit:
            raise self._error(f"the tensor {name} has a senseless shape")
        if not 0 <= begin <= end <= body.size:
            raise self._error(
                f"the tensor {name} lies at bytes {begin} to {end} of {body.size}: "
                f"the file is truncated, or the header is damaged"
            )
        itemsize, type_ = DTYPES.get(dtype, (1, None))
        if dtype in DTYPES and math.prod(shape) * itemsize != end - begin:
            raise self._error(
                f"the tensor {name} of shape {shape} in {dtype} does not have {end - begin} bytes"
            )
        return StoredTensor(body, begin, shape, contiguous_strides(shape), itemsize, type_, dtype)

    def _check_overlaps(self, tensors: dict[str, StoredTensor]) -> None:
        spans = sorted(
            (tensor.offset, tensor.offset + tensor.n_bytes, name)
            for name, tensor in tensors.items()
            if tensor.n_bytes
        )
        for (_, end, name), (begin, _, following) in pairwise(spans):
            if begin < end:
                raise self._error(f"the tensors {name} and {following} lie over each other")

    def _error(self, problem: str) -> CorruptFileError:
        return CorruptFileError(self.path, f"{problem}; fetch the file again")
