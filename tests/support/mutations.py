"""Damages files in many small ways, the same ones in every run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield ``count`` damaged versions: bytes changed, cut out, doubled, or the end cut off."""
    rng = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(content)
        start = rng.randrange(len(damaged))
        end = start + rng.randrange(1, 9)
        match rng.randrange(5):
            case 0:
                damaged[start] ^= 1 << rng.randrange(8)
            case 1:
                damaged[start:end] = rng.choice((b"\x00", b"\xff", b"\x7f")) * len(
                    damaged[start:end]
                )
            case 2:
                del damaged[start:end]
            case 3:
                damaged[start:start] = damaged[start:end]
            case _:
                del damaged[start:]
        yield bytes(damaged)
