"""Blocks of the KV cache on disk, so that a prompt is not computed again in a later run.

A folder of the cache has a folder for each model, and in it one file for each full block, named
as the block is.  A file is written whole or not at all: under a temporary name, then renamed.
Processes may share the cache: two that write the same block write the same bytes.

A file is a header, little-endian, and the block's bytes as the model gives them:

    8 bytes   ``RLLAMAKV``
    4         version of this form
    4         place of the block in its text
    8         bytes of the block
    32        name of the block
    32        BLAKE2b of all of the above and of the block's bytes

What cannot be read or written is noted once and costs nothing but the reuse.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.errors import SettingError
from pyrllama.prompt_folder import MODEL_FILE, SUFFIX, TEMPORARY, VERSION, model_folder, prune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

MIN_TOKENS = 256
"""Shorter texts are computed in about the time that a look at the disk is worth."""
DEFAULT_BYTES = 4 << 30
"""Bound on a cache's size unless told otherwise."""
MAGIC = b"RLLAMAKV"
HEADER = struct.Struct("<8sIIQ32s32s")
CHECKSUM_BYTES = 32
IN_FLIGHT = 2
"""Blocks that may wait to be written: they are copies in memory."""
PRUNE_SHARE = 16
"""The folder's size is looked at whenever this part of its bound was written."""
PLACE_NS = 1000
"""By so much a block counts as older than the one before it, so that it is removed first."""


class PromptStore:
    """The blocks of one model in a folder; see ``block_bytes.BlockStore``.

    ``identity`` stands for all that shapes the numbers, and ``label`` is what a list says of the
    model.  ``block_bytes`` is the size of a block.  ``max_bytes`` bounds the folder, the blocks
    of other models included.  ``on_note`` is told, once, what went wrong.
    """

    def __init__(
        self,
        folder: Path,
        identity: bytes,
        label: Mapping[str, Any],
        block_bytes: int,
        *,
        max_bytes: int = DEFAULT_BYTES,
        min_tokens: int = MIN_TOKENS,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        if max_bytes < 1:
            raise SettingError("prompt_cache_bytes", max_bytes, "a whole number from 1 upwards")
        self.min_tokens = min_tokens
        self._root, self._folder = folder, model_folder(folder, identity)
        self._label = dict(label)
        self._block_bytes = block_bytes
        self._max_bytes = max_bytes
        self._on_note = on_note or (lambda _: None)
        self._writable = True
        self._unseen = max_bytes  # written since the size was looked at: at first by others
        self._notes: deque[str] = deque()
        self._writer: ThreadPoolExecutor | None = None
        self._in_flight: deque[Future[None]] = deque()

    # --- reading ------------------------------------------------------------------------------

    def has(self, name: bytes) -> bool:
        """Tell whether there is a file of a block's name."""
        return self._file(name).exists()

    def load(self, name: bytes) -> NDArray[np.uint8] | None:
        """Return the bytes of a block; None if it is not there, or damaged, which is noted."""
        file = self._file(name)
        try:
            data, problem = self._read(file, name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            data, problem = None, f"cannot be read ({error.strerror})"
        if problem:
            self._note(f"{file} of the prompt cache {problem}; it is ignored")
        return data

    def _read(self, file: Path, name: bytes) -> tuple[NDArray[np.uint8] | None, str | None]:
        """Return a block's bytes, or what is wrong with the file."""
        with file.open("rb", buffering=0) as stream:
            header = stream.read(HEADER.size)
            if not header.startswith(MAGIC):
                return None, "is no file of this program"
            size = os.fstat(stream.fileno()).st_size
            problem = "is damaged"
            if len(header) == HEADER.size and size == HEADER.size + self._block_bytes:
                data = np.empty(self._block_bytes, np.uint8)
                if _read_all(stream, data.data) and _is_sound(header, data, name):
                    return data, None
        with contextlib.suppress(OSError):
            file.unlink()  # so that it is written again
        return None, problem

    def used(self, names: Sequence[bytes]) -> None:
        """Mark the blocks of a text as used now, its beginning as the latest."""
        now = time.time_ns()
        for place, name in enumerate(names):
            with contextlib.suppress(OSError):
                _mark(self._file(name), now, place)

    # --- writing ------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a block can be handed over now without waiting for an earlier one."""
        self._tell()
        while self._in_flight and self._in_flight[0].done():
            self._in_flight.popleft().result()
        return len(self._in_flight) < IN_FLIGHT

    def save(self, name: bytes, place: int, data: NDArray[np.uint8]) -> None:
        """Write the block of a name, in another thread; nothing after writing once failed."""
        if not self._writable:
            return
        if not self.ready:
            self._in_flight.popleft().result()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="prompt-cache")
        self._in_flight.append(self._writer.submit(self._save, name, place, data))

    def close(self) -> None:
        """Wait until all is written."""
        if self._writer is not None:
            self._writer.shutdown()
        self._tell()

    def _save(self, name: bytes, place: int, data: NDArray[np.uint8]) -> None:
        """Write a block, and look at the folder's size from time to time."""
        if not self._writable:
            return
        try:
            self._write(name, place, data)
        except OSError as error:
            self._writable = False
            self._notes.append(
                f"the prompt cache {self._root} cannot be written ({error.strerror}); this "
                f"prompt will be computed again next time (--prompt-cache names another folder)"
            )

    def _write(self, name: bytes, place: int, data: NDArray[np.uint8]) -> None:
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._folder / MODEL_FILE, [json.dumps(self._label).encode()])
        self._unseen += data.nbytes
        if self._unseen > self._max_bytes // PRUNE_SHARE:
            prune(self._root, self._max_bytes - data.nbytes)
            self._unseen = 0
        file = self._file(name)
        write_whole(file, [_header(name, place, data), data.data])
        _mark(file, time.time_ns(), place)

    def _file(self, name: bytes) -> Path:
        return self._folder / f"{name.hex()}{SUFFIX}"

    def _note(self, message: str) -> None:
        self._notes.append(message)
        self._tell()

    def _tell(self) -> None:
        """Hand on the notes, in the thread of the caller."""
        while self._notes:
            self._on_note(self._notes.popleft())


def write_whole(file: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file under a temporary name and rename it, so that nobody sees half of it.

    Raises ``OSError``, and leaves nothing behind then.
    """
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=file.parent)
    temporary = Path(name)
    try:
        with open(handle, "wb", buffering=0) as stream:  # noqa: PTH123 - it is no path
            for part in parts:
                _write_all(stream, memoryview(part))
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_all(stream: Any, part: memoryview) -> None:
    while part:
        part = part[stream.write(part) :]


def _read_all(stream: Any, target: memoryview) -> bool:
    while target:
        count = stream.readinto(target)
        if not count:
            return False
        target = target[count:]
    return True


def _header(name: bytes, place: int, data: NDArray[np.uint8]) -> bytes:
    fields = (MAGIC, VERSION, place, data.nbytes, name)
    return HEADER.pack(*fields, _checksum(HEADER.pack(*fields, b""), data))


def _is_sound(header: bytes, data: NDArray[np.uint8], name: bytes) -> bool:
    *fields, checksum = HEADER.unpack(header)
    _, version, _, size, stored_name = fields
    if (version, size, stored_name) != (VERSION, data.nbytes, name):
        return False
    return bool(checksum == _checksum(HEADER.pack(*fields, b""), data))


def _checksum(header: bytes, data: NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(header[:-CHECKSUM_BYTES], digest_size=CHECKSUM_BYTES)
    digest.update(data.data)
    return digest.digest()


def _mark(file: Path, now: int, place: int) -> None:
    """Set when a file was used last; it decides which are removed first."""
    moment = now - place * PLACE_NS
    os.utime(file, ns=(moment, moment))
