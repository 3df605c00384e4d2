"""A file mapped into memory, read through bounds-checked views that copy nothing."""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.errors import CorruptFileError, ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_DONTNEED: int | None = getattr(mmap, "MADV_DONTNEED", None)


class MappedFile:
    """A read-only memory map of a whole file with bounds-checked access.

    Raises ``ModelNotFoundError`` when there is no regular, readable file at ``path``, and
    ``CorruptFileError`` when it is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map_file(path)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self.size = len(self._map)

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Return ``length`` bytes from ``offset`` on as a read-only 1-D view of the map.

        Raises ``CorruptFileError`` when the file has no such bytes.
        """
        self._check(offset, length)
        return self._bytes[offset : offset + length]

    def release(self, offset: int, length: int) -> None:
        """Give the whole pages inside these bytes back to the system, where it can take them.

        Views stay valid: touching them reads the file again.
        """
        self._check(offset, length)
        page = mmap.PAGESIZE
        first = -(-offset // page) * page
        end = offset + length
        # The last page of the file belongs to the range that reaches the file's end.
        last = end if end == self.size else end // page * page
        if _DONTNEED is not None and last > first and not self._map.closed:
            self._map.madvise(_DONTNEED, first, last - first)

    def close(self) -> None:
        """Unmap the file, or leave that to the last view where some are still in use."""
        self._bytes = np.empty(0, dtype=np.uint8)
        with suppress(BufferError):
            self._map.close()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CorruptFileError(
                self.path,
                f"{length} bytes are wanted at offset {offset}, but the file has {self.size}; "
                f"it is truncated or damaged: fetch it again",
            )


def _map_file(path: Path) -> mmap.mmap:
    """Map a regular, non-empty file; anything else is an error that says what it is."""
    try:
        status = path.stat()
        # Looked at before opening, because opening a pipe would wait for its other end.
        if stat.S_ISDIR(status.st_mode):
            raise ModelNotFoundError(path, "this is a folder, but a file is needed here")
        if not stat.S_ISREG(status.st_mode):
            raise ModelNotFoundError(path, "this is not a regular file and cannot be mapped")
        if status.st_size == 0:
            raise CorruptFileError(path, "the file is empty: fetch it again")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelNotFoundError(path, "there is no such file; check the path") from error
    except PermissionError as error:
        raise ModelNotFoundError(path, "no permission to read this file") from error
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ModelNotFoundError(path, f"the file cannot be opened: {reason}") from error
