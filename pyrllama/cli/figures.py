"""Figures of a run: sizes for people, memory, versions, and the line that ends a generation."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyrllama import __version__
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from pyrllama.core import Completion

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What Linux takes in ``clear_refs`` to begin a new peak of resident memory (proc(5))."""

RUNTIME_PACKAGES = ("numpy", "numba", "llvmlite")


def peak_memory() -> int | None:
    """Return the most bytes that this process ever had resident; None where unknown."""
    try:
        # Linux: ru_maxrss would count what the parent process had before it started us.
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Let ``peak_memory`` begin anew, where the system can (Linux)."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return


def versions() -> dict[str, str]:
    """Return the versions that a figure depends on."""
    import importlib.metadata  # noqa: PLC0415 - 30 ms that only a report needs

    found = {"pyrllama": __version__, "python": platform.python_version()}
    for package in RUNTIME_PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def figures_line(completion: Completion, decode_bytes: int) -> str:
    """Return the line that ends a generation.

    GB/s counts the weights that every decoded token reads; memory is the peak of the process.
    """
    timings = completion.timings
    parts = [f"prompt {timings.prompt_tokens} tokens, {timings.prompt_rate:.1f} tokens/s"]
    if timings.decode_rate > 0:
        rate = timings.decode_rate
        parts.append(f"{1000 / rate:.2f} ms/token, {rate:.1f} tokens/s")
        parts.append(f"{rate * decode_bytes / 1e9:.2f} GB/s")
    peak = peak_memory()
    if peak is not None:
        parts.append(f"{format_bytes(peak)} memory")
    parts.append(f"seed {completion.seed}")
    return " | ".join(parts)
