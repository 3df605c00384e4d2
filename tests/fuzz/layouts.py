"""Where the numbers of each format stand, found in a whole file without the package's readers."""

from __future__ import annotations

import json
import pickletools
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from fuzz.damage import Field, blind, replace_part, set_field

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_GGUF_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_ZIP_FIELDS = {
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\x01\x02": ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)),
    b"PK\x05\x06": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}
"""Offsets behind the signatures and widths, by APPNOTE 6.3.10."""


def fields_of_gguf(content: bytes) -> list[Field]:
    """Walk through header, metadata and directory."""
    walk = _GgufWalk(content)
    walk.at = 4
    walk.number(4)
    n_tensors, n_keys = walk.number(8), walk.number(8)
    for _ in range(n_keys):
        walk.text()
        walk.value(walk.number(4))
    for _ in range(n_tensors):
        walk.text()
        for _ in range(walk.number(4)):
            walk.number(8)
        walk.number(4)
        walk.number(8)
    return walk.fields


class _GgufWalk:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0
        self.fields: list[Field] = []

    def number(self, width: int) -> int:
        self.fields.append(Field(self.at, width))
        self.at += width
        if self.at > len(self._content):
            raise IndexError(self.at)
        return int.from_bytes(self._content[self.at - width : self.at], "little")

    def text(self) -> None:
        self.at += self.number(8)

    def value(self, code: int) -> None:
        if code == _STRING:
            self.text()
        elif code == _ARRAY:
            inner, count = self.number(4), self.number(8)
            for _ in range(count):
                self.value(inner)
        else:
            self.number(_GGUF_WIDTHS[code])


def fields_of_zip(content: bytes) -> list[Field]:
    """Find the headers of the records and of the directory by their signatures."""
    fields = []
    for signature, places in _ZIP_FIELDS.items():
        at = content.find(signature)
        while at >= 0:
            fields += [Field(at + offset, width) for offset, width in places]
            at = content.find(signature, at + 1)
    return fields


def fields_of_words(count: int, start: int = 0) -> Callable[[bytes], list[Field]]:
    """Return what finds ``count`` numbers of four bytes at the start of a file."""
    return lambda _: [Field(start + 4 * i, 4) for i in range(count)]


def fields_of_protobuf(content: bytes) -> list[Field]:
    """Walk through a message and those within it: every byte of keys, sizes and numbers."""
    return _protobuf(content, 0, len(content))


def _protobuf(content: bytes, at: int, end: int, depth: int = 0) -> list[Field]:
    fields: list[Field] = []
    while at < end:
        start = at
        key, at = _varint(content, at)
        if key & 7 == 2:
            size, at = _varint(content, at)
            fields += [Field(i, 1) for i in range(start, at)]
            if depth == 0:
                fields += _protobuf(content, at, at + size, 1)
            at += size
        else:
            at = _varint(content, at)[1] if key & 7 == 0 else at + {1: 8, 5: 4}[key & 7]
            fields += [Field(i, 1) for i in range(start, at)]
    return fields


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (content[at] & 0x7F) << shift
        shift += 7
        at += 1
        if content[at - 1] < 0x80:
            return value, at


def at_fields(find: Callable[[bytes], list[Field]]) -> Callable[[bytes, random.Random], bytes]:
    """Return the damage that sets one of a format's numbers; files that it broke stay so."""
    kept = lru_cache(maxsize=2)(find)

    def damage(content: bytes, rng: random.Random) -> bytes:
        try:
            fields = kept(content)
        except (IndexError, KeyError):  # damaged before, so that nothing can be found in it
            return blind(content, rng)
        fitting = [field for field in fields if field.offset + field.width <= len(content)]
        return set_field(content, rng.choice(fitting), rng) if fitting else blind(content, rng)

    return damage


def in_json(content: bytes, rng: random.Random) -> bytes:
    """Replace a part of a JSON text."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return blind(content, rng)
    return _dumped(replace_part(tree, rng))


def in_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Replace a part of the header, whose length is right again behind it."""
    (length,) = struct.unpack_from("<Q", content.ljust(8, b"\0"))
    header = content[8 : 8 + length]
    damaged = in_json(header, rng)
    return struct.pack("<Q", len(damaged)) + damaged + content[8 + length :]


def in_pickle(content: bytes, rng: random.Random) -> bytes:
    """Delete, double, swap or damage instructions of a pickle."""
    try:
        starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    except Exception:
        return blind(content, rng)
    spans = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    i, j = rng.randrange(len(spans)), rng.randrange(len(spans))
    match rng.randrange(4):
        case 0:
            del spans[i]
        case 1:
            spans.insert(i, spans[j])
        case 2:
            spans[i], spans[j] = spans[j], spans[i]
        case _:
            spans[i] = spans[i][:1] + blind(spans[i][1:], rng)
    return b"".join(spans)


def _dumped(tree: object) -> bytes:
    try:
        return json.dumps(tree).encode()
    except ValueError:  # whole numbers of more digits than Python writes
        return b"1" * 5000
