"""Ways to damage a file: blindly, at the places of its numbers, and in what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import random

Damage = Callable[[bytes, "random.Random"], bytes]
"""Returns another version of a file's content, the same for the same state of the generator."""


class Field(NamedTuple):
    """Bytes of a file that are one little-endian number: a size, a count, an offset, a code."""

    offset: int
    width: int


def blind(content: bytes, rng: random.Random) -> bytes:
    """Change, cut out, double, move or swap bytes anywhere, or cut the end off."""
    damaged = bytearray(content)
    start = rng.randrange(len(damaged) + 1)
    end = min(len(damaged), start + rng.choice((1, 2, 4, 8, 64, 4096)))
    match rng.randrange(7):
        case 0 if damaged:
            damaged[start % len(damaged)] ^= 1 << rng.randrange(8)
        case 1:
            damaged[start:end] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * (end - start)
        case 2:
            damaged[start:end] = rng.randbytes(end - start)
        case 3:
            del damaged[start:end]
        case 4:
            damaged[start:start] = damaged[start:end] * rng.choice((1, 2, 50))
        case 5:
            other = rng.randrange(len(damaged) + 1)
            damaged[other : other + end - start] = damaged[start:end]
        case _:
            del damaged[start:]
    return bytes(damaged)


def start_of(content: bytes, rng: random.Random) -> bytes:
    """Damage the first kilobyte blindly: headers are short, and weights are not."""
    return blind(content[:1024], rng) + content[1024:]


def set_field(content: bytes, field: Field, rng: random.Random) -> bytes:
    """Replace a number by one at the edge of what it may be."""
    bits = 8 * field.width
    old = int.from_bytes(content[field.offset : field.offset + field.width], "little")
    edges = (
        *(0, 1, 2, 3, 31, 33, 255, 256, 257, 4096, 0x7FFF, 0xFFFF, 0x10000),
        *(1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 60, (1 << 61) + 1),
        *(1 << bits - 1, (1 << bits - 1) - 1, (1 << bits) - 1, (1 << bits) - 32),
        *(old - 1, old + 1, old * 2, old // 2, old + 32, old ^ 1 << rng.randrange(bits)),
        *(len(content), len(content) - field.offset, len(content) - field.offset - field.width),
    )
    new = rng.choice(edges) % (1 << bits)
    stored = new.to_bytes(field.width, "little")
    return content[: field.offset] + stored + content[field.offset + field.width :]


def some_word(content: bytes, rng: random.Random) -> bytes:
    """Replace four bytes anywhere, as if they were a number."""
    return set_field(content, Field(rng.randrange(max(1, len(content) - 3)), 4), rng)


_LEAVES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 48, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**400, 0.5, -0.0, 1e-300, 1e300),
    *(float("inf"), float("nan"), "", " ", "a", "\ud800", "\0", "\x1b[2J", "a\nb", "é" * 300),
    *("a" * 70_000, "<0xZZ>", "<0x41>", "▁", [], {}, [1], [""], {"a": 1}, [[], [[]], 1]),
)


def replace_part(tree: Any, rng: random.Random, leaves: tuple[Any, ...] = _LEAVES) -> Any:
    """Return a tree of dictionaries and lists with one of its parts replaced, gone or doubled."""
    tree = copy.deepcopy(tree)
    holder, key = _some_part(tree, rng)
    if holder is None:
        return rng.choice(leaves)
    match rng.randrange(7):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[rng.randrange(len(holder))]))
        case 1:
            holder[rng.choice(("", "a", "type", "\ud800"))] = holder.pop(key)
        case 2:
            other, other_key = _some_part(tree, rng)
            if other is not None:
                holder[key] = copy.deepcopy(other[other_key])
        case 3 if isinstance(holder[key], int | float):
            holder[key] = rng.choice((holder[key] + 1, holder[key] - 1, holder[key] * 2))
        case 4 if isinstance(holder[key], list | str):
            holder[key] = holder[key] * rng.choice((2, 100))
        case 5 if isinstance(holder[key], list | str):
            holder[key] = holder[key][: rng.randrange(len(holder[key]) + 1)]
        case _:
            holder[key] = copy.deepcopy(rng.choice(leaves))
    return tree


def _some_part(tree: Any, rng: random.Random) -> tuple[Any, Any]:
    """Return a dictionary or list within a tree and a key of it, both None where there is none."""
    holder, key = None, None
    while isinstance(tree, dict | list) and tree:
        holder = tree
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        tree = tree[key]
        if rng.randrange(3) == 0:
            break
    return holder, key
