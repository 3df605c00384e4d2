"""Opens what ``torch.save`` writes: the zip as it is, or the folder that it unzips to.

Tensors are views of the mapped file.  Source of the layout: ``torch/serialization.py`` and
``caffe2/serialize/inline_container.h`` of PyTorch 1.6 and later.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Protocol

from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.checkpoints.stored import FileSlice, LazyFile, StoredTensor
from pyrllama.checkpoints.unpickler import MAX_PICKLE_BYTES, StorageRef, TensorRef, unpickle
from pyrllama.checkpoints.zip_directory import LOCAL_SIGNATURE, read_zip_directory
from pyrllama.errors import CorruptFileError, UnknownFormatError, UnsupportedTypeError
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pyrllama.checkpoints.stored import Storage

PICKLE = "data.pkl"
PICKLE_START = 0x80
"""The first byte of a pickle, which is what PyTorch wrote before 1.6, without a zip."""

STORAGES: dict[str, tuple[int, TensorType | None]] = {
    "FloatStorage": (4, TensorType.F32),
    "HalfStorage": (2, TensorType.F16),
    "BFloat16Storage": (2, TensorType.BF16),
    "DoubleStorage": (8, None),
    "LongStorage": (8, None),
    "IntStorage": (4, None),
    "ShortStorage": (2, None),
    "CharStorage": (1, None),
    "ByteStorage": (1, None),
    "BoolStorage": (1, None),
    "UntypedStorage": (1, None),
    "ComplexFloatStorage": (8, None),
    "ComplexDoubleStorage": (16, None),
}
"""PyTorch's storage classes: bytes of an element, and its type where weights can have it."""

MOST_SHARING = 2
"""How often the bytes of a file may be used: a tied output projection is the embedding again."""

_KEY = re.compile(r"\w{1,64}", re.ASCII)


class TorchFile:
    """A file of tensors, or the unzipped folder of one; ``tensors`` has them by name.

    Raises ``UnknownFormatError`` for files that PyTorch before 1.6 wrote or that are no zip,
    ``UnsafePickleError`` for a pickle that does more than describe tensors, and
    ``CorruptFileError`` for what is truncated or does not fit together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: _Records = _Folder(path) if path.is_dir() else _Zip(path)
        self._storages: dict[str, Storage] = {}
        try:
            self._check_byte_order()
            state = unpickle(self._records.read(PICKLE, MAX_PICKLE_BYTES), path)
            self.tensors = self._tensors(state)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmap the file."""
        self._records.close()

    def _check_byte_order(self) -> None:
        order = self._records.read("byteorder", 16) if self._records.has("byteorder") else b""
        if order.strip() == b"big":
            raise UnsupportedTypeError(
                self.path, "its numbers are big-endian; save it again on a little-endian machine"
            )

    def _tensors(self, state: object) -> dict[str, StoredTensor]:
        if not isinstance(state, dict):
            raise CorruptFileError(self.path, "the pickle holds no dictionary of tensors")
        tensors = {
            name: self._tensor(name, value)
            for name, value in state.items()
            if isinstance(value, TensorRef)
        }
        self._check_sharing(tensors.values())
        return tensors

    def _check_sharing(self, tensors: Iterable[StoredTensor]) -> None:
        """Refuse a small file that makes a large model out of the same numbers many times."""
        taken = sum(math.prod(tensor.shape) * tensor.itemsize for tensor in tensors)
        stored = sum(storage.size for storage in self._storages.values())
        if taken > MOST_SHARING * stored:
            raise CorruptFileError(
                self.path,
                f"its tensors take {taken} bytes of {stored} that are stored: too many share "
                f"theirs for weights; fetch the file again",
            )

    def _tensor(self, name: str, ref: TensorRef) -> StoredTensor:
        kind = ref.storage.kind
        if kind not in STORAGES:
            raise UnsupportedTypeError(
                self.path, f"the tensor {name} is stored in an unknown type, {kind}"
            )
        itemsize, type_ = STORAGES[kind]
        storage = self._storage(ref.storage, itemsize)
        offset = ref.offset * itemsize
        tensor = StoredTensor(storage, offset, ref.shape, ref.strides, itemsize, type_, kind)
        tensor.check_bounds(self.path, name)
        return tensor

    def _storage(self, ref: StorageRef, itemsize: int) -> Storage:
        """Return the storage of a key; tensors that share one get the same."""
        if ref.key not in self._storages:
            if not _KEY.fullmatch(ref.key):
                raise CorruptFileError(self.path, "the pickle names a record outside of data/")
            self._storages[ref.key] = self._records.storage(f"data/{ref.key}")
        storage = self._storages[ref.key]
        if ref.numel * itemsize > storage.size:
            raise CorruptFileError(
                self.path,
                f"the record data/{ref.key} has {storage.size} bytes, but the pickle says "
                f"{ref.numel} numbers of {itemsize}; fetch the file again",
            )
        return storage


def starts_like_torch(path: Path) -> bool:
    """Whether a file starts as PyTorch's files of any age do, or a folder has ``data.pkl``.

    Files of the age before the zip, and truncated ones, count: opening them says what to do.
    """
    try:
        if path.is_dir():
            return (path / PICKLE).is_file()
        with path.open("rb") as file:
            return _starts_like_torch(file.read(len(LOCAL_SIGNATURE)))
    except (OSError, ValueError):
        return False


def _starts_like_torch(start: bytes) -> bool:
    if start == LOCAL_SIGNATURE:
        return True
    # A pickle's second byte is its protocol, its third an opcode, of which none is 0.
    return len(start) > 2 and start[0] == PICKLE_START and 1 <= start[1] <= 5 and start[2] != 0


def find_unzipped(folder: Path) -> Path | None:
    """Return the folder with ``data.pkl``: this one, or the only one in it that has it."""
    if (folder / PICKLE).is_file():
        return folder
    found = [path.parent for path in folder.glob(f"*/{PICKLE}") if path.is_file()]
    return found[0] if len(found) == 1 else None


class _Records(Protocol):
    """The records of a file, named without the folder that PyTorch puts them in."""

    def has(self, name: str) -> bool: ...
    def read(self, name: str, limit: int) -> bytes: ...
    def storage(self, name: str) -> Storage: ...
    def close(self) -> None: ...


class _Zip:
    """The records of a zip, views of one map."""

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            _check_start(self._file)
            self._directory = read_zip_directory(self._file)
            self._prefix = self._find_prefix()
        except BaseException:
            self._file.close()
            raise

    def _find_prefix(self) -> str:
        found = [name for name in self._directory if name.rpartition("/")[2] == PICKLE]
        if len(found) != 1:
            raise UnknownFormatError(
                self._file.path,
                f"this zip has {len(found)} records named {PICKLE}; a PyTorch file has one",
            )
        return found[0].removesuffix(PICKLE)

    def has(self, name: str) -> bool:
        return self._prefix + name in self._directory

    def read(self, name: str, limit: int) -> bytes:
        storage = self.storage(name)
        _check_limit(self._file.path, name, storage.size, limit)
        return storage.view(0, storage.size).tobytes()

    def storage(self, name: str) -> FileSlice:
        record = self._directory.get(self._prefix + name)
        if record is None:
            raise _missing(self._file.path, name)
        return FileSlice(self._file, record.offset, record.size)

    def close(self) -> None:
        self._file.close()


class _Folder:
    """The records that a zip unpacks to, each a file that is mapped while in use."""

    def __init__(self, path: Path) -> None:
        folder = find_unzipped(path)
        if folder is None:
            raise _missing(path, PICKLE)
        self._folder = folder
        self._opened: list[LazyFile] = []

    def has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def read(self, name: str, limit: int) -> bytes:
        storage = self.storage(name)
        _check_limit(self._folder, name, storage.size, limit)
        content = storage.view(0, storage.size).tobytes()
        storage.close()
        return content

    def storage(self, name: str) -> LazyFile:
        if not self.has(name):
            raise _missing(self._folder, name)
        storage = LazyFile(self._folder / name)
        self._opened.append(storage)
        return storage

    def close(self) -> None:
        for storage in self._opened:
            storage.close()


def _check_start(file: MappedFile) -> None:
    """Raise ``UnknownFormatError`` unless the file starts as a zip does."""
    start = file.view(0, min(file.size, len(LOCAL_SIGNATURE))).tobytes()
    if start == LOCAL_SIGNATURE:
        return
    if _starts_like_torch(start):
        raise UnknownFormatError(
            file.path,
            "this is a bare pickle, as PyTorch wrote before version 1.6; nothing of it was run; "
            "load and save it with a later PyTorch, or fetch the model as safetensors",
        )
    raise UnknownFormatError(file.path, "this is not a PyTorch file, which is a zip")


def _check_limit(path: Path, name: str, size: int, limit: int) -> None:
    if size > limit:
        raise CorruptFileError(
            path, f"the record {name} has {size} bytes, but at most {limit} are read"
        )


def _missing(path: Path, name: str) -> CorruptFileError:
    return CorruptFileError(path, f"there is no record {name}; fetch the file again")
