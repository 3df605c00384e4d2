"""The few lines of Protocol Buffers' wire format that a SentencePiece model needs.

Source: the encoding guide of Protocol Buffers.  A message is a run of fields; each starts with
a varint ``number << 3 | wire type``.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_VARINT_BYTES = 10
_ONE_BYTE = tuple(bytes([value]) for value in range(256))


class WireType(enum.IntEnum):
    """How a field's value is laid out."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


def varint(value: int) -> bytes:
    """Write a number from 0 upwards, 7 bits a byte, the lowest first."""
    if value < 0x80:
        return _ONE_BYTE[value]
    return _ONE_BYTE[value & 0x7F | 0x80] + varint(value >> 7)


def varint_field(number: int, value: int) -> bytes:
    """Write a whole number, an enum or a bool."""
    return varint(number << 3 | WireType.VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """Write a string, bytes or a message."""
    return varint(number << 3 | WireType.BYTES) + varint(len(value)) + value


def float_field(number: int, value: float) -> bytes:
    """Write a 32-bit float."""
    return varint(number << 3 | WireType.FIXED32) + struct.pack("<f", value)


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field's number and value: an int of a varint, bytes of anything else.

    Raises ``ValueError`` for a message that is cut or malformed.
    """
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == WireType.VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if wire_type == WireType.BYTES:
            size, at = _read_varint(message, at)
        else:
            size = {WireType.FIXED32: 4, WireType.FIXED64: 8}.get(WireType(wire_type), 0)
        if size > len(message) - at:
            raise ValueError(f"field {number} runs over the end at byte {at}")
        yield number, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Read the varint at an offset; return it and the offset behind it."""
    value = 0
    for shift, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError(f"a number does not end at byte {at}")
