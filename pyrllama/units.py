"""Numbers as people say them."""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """Return a size in decimal units, as memory bandwidth is quoted too: ``3.8 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_count(count: int) -> str:
    """Return a number of parameters as people say it: ``6.7 B``, ``260 K``."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
