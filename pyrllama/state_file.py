"""A text with its part of the KV cache in one file, to go on with later.

Little-endian:

    8 bytes   ``RLLAMAST``
    4         version of this form
    4         tokens of the text
    4         tokens of it whose keys and values follow
    4         nothing
    8         bytes of a block
    32        name of the empty text, which stands for the model and all that shapes its numbers
    8 each    the tokens
              the blocks, as the model gives them
    32        BLAKE2b of all of the above
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pyrllama.block_bytes import block_memory
from pyrllama.core import BLOCK_TOKENS, blocks_for
from pyrllama.errors import CacheFullError, PromptError, StateError
from pyrllama.prefix import Held
from pyrllama.prompt_store import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pyrllama.block_bytes import BlockMemory
    from pyrllama.engine import Engine

MAGIC = b"RLLAMAST"
VERSION = 1
HEADER = struct.Struct("<8sIIIIQ32s")
CHECKSUM_BYTES = 32
TOKEN_BYTES = 8


def save_state(path: Path, engine: Engine, tokens: Sequence[int]) -> None:
    """Write a text and what the cache holds of it; the rest is computed when it is needed.

    Raises ``StateError`` if the file cannot be written or the backend's cache not be read,
    and ``PromptError`` for no text.
    """
    if not tokens:
        raise PromptError("there is no text to save; give the tokens of a completion")
    memory = _memory(path, engine)
    text = [int(token) for token in tokens]
    held = engine.prefixes.begin(text)
    if held is None:
        raise CacheFullError("the text does not fit into what is free of the KV cache")
    try:
        write_whole(path, _parts(text, held, memory, engine))
    except OSError as error:
        raise StateError(path, f"cannot be written ({error.strerror})") from error
    finally:
        engine.prefixes.end(held, text)


def _parts(
    text: list[int], held: Held, memory: BlockMemory, engine: Engine
) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a file, the checksum last."""
    block_bytes, root = _block_bytes(engine), engine.prefixes.root
    digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    header = HEADER.pack(MAGIC, VERSION, len(text), held.cached, 0, block_bytes, root)
    blocks = held.blocks[: blocks_for(held.cached)]
    for part in (header, np.array(text, "<i8").data.cast("B")):
        digest.update(part)
        yield part
    for block in blocks:
        data = memory.read_block(block)
        digest.update(data.data)
        yield data.data
    yield digest.digest()


def load_state(path: Path, engine: Engine) -> tuple[int, ...]:
    """Put a saved text's part of the cache back and return its tokens.

    Raises ``StateError`` for a file that cannot be read, is damaged, or is another model's,
    and ``CacheFullError`` where running requests leave no room.
    """
    memory = _memory(path, engine)
    try:
        with path.open("rb") as stream:
            return _Reader(path, stream, engine, memory).read()
    except OSError as error:
        raise StateError(path, f"cannot be read ({error.strerror})") from error


class _Reader:
    """Reads one file, piece by piece; nothing counts before the checksum is right."""

    def __init__(self, path: Path, stream: BinaryIO, engine: Engine, memory: BlockMemory) -> None:
        self._path, self._stream, self._engine, self._memory = path, stream, engine, memory
        self._digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)

    def read(self) -> tuple[int, ...]:
        """Return the tokens; the blocks are in the cache then."""
        n_tokens, cached = self._read_header()
        text = np.frombuffer(self._take(n_tokens * TOKEN_BYTES), "<i8").tolist()
        prefixes = self._engine.prefixes
        held = Held(blocks=list(prefixes.pool.take(blocks_for(cached))))
        try:
            for block in held.blocks:
                data = self._take(_block_bytes(self._engine))
                self._memory.write_block(block, np.frombuffer(data, np.uint8))
            if self._stream.read() != self._digest.digest():
                raise StateError(self._path, "is damaged: its checksum is another")
            held.cached = cached
        finally:
            prefixes.end(held, text)
        return tuple(text)

    def _read_header(self) -> tuple[int, int]:
        header = self._stream.read(HEADER.size)
        if not header.startswith(MAGIC) or len(header) < HEADER.size:
            raise StateError(self._path, "is no state that save_state wrote")
        self._digest.update(header)
        _, version, n_tokens, cached, _, block_bytes, root = HEADER.unpack(header)
        if version != VERSION:
            raise StateError(self._path, f"is of version {version}; this program has {VERSION}")
        if root != self._engine.prefixes.root or block_bytes != _block_bytes(self._engine):
            raise StateError(
                self._path,
                "is another model's, or was saved by another version of the program, on another "
                "kind of CPU, or with another --kv-type or --quantize",
            )
        self._check_sizes(n_tokens, cached, block_bytes)
        return n_tokens, cached

    def _check_sizes(self, n_tokens: int, cached: int, block_bytes: int) -> None:
        blocks = blocks_for(cached)
        size = HEADER.size + n_tokens * TOKEN_BYTES + blocks * block_bytes + CHECKSUM_BYTES
        if cached > n_tokens or os.fstat(self._stream.fileno()).st_size != size:
            raise StateError(self._path, "is damaged: its size is not what its header says")
        if n_tokens > self._engine.max_seq_len:
            raise StateError(
                self._path,
                f"has {n_tokens} tokens, but the context holds {self._engine.max_seq_len}; "
                f"load the model with a larger max_seq_len",
            )

    def _take(self, n_bytes: int) -> bytes:
        data = self._stream.read(n_bytes)
        self._digest.update(data)
        if len(data) != n_bytes:
            raise StateError(self._path, "is damaged: it ends too early")
        return data


def _memory(path: Path, engine: Engine) -> BlockMemory:
    memory = block_memory(engine.model)
    if memory is None:
        raise StateError(path, "cannot be used: this backend's KV cache cannot be saved")
    return memory


def _block_bytes(engine: Engine) -> int:
    return engine.model.kv_bytes_per_token * BLOCK_TOKENS
