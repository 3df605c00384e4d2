"""Experts that files hold one by one, as the one tensor of all of them that models have.

Hugging Face's checkpoints, and GGUF files from before April 2024, have a tensor for each expert.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyrllama.errors import TensorError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_EXPERT = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(0|[1-9]\d{0,3})\.weight", re.ASCII)


def expert_name(layer: int, matrix: str, expert: int) -> str:
    """Return the name of one expert's matrix (``ffn_gate``), as older GGUF files have it."""
    return f"blk.{layer}.{matrix}.{expert}.weight"


def group_experts(path: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of experts' matrices in their order, by that of all of them together.

    Raises ``TensorError`` where one is missing between others.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        if found := _EXPERT.fullmatch(name):
            numbers.setdefault(found[1], set()).add(int(found[2]))
    for matrix, present in numbers.items():
        missing = set(range(len(present))) - present
        if missing:
            raise TensorError(
                path, f"lacks {matrix}.{min(missing)}.weight, but has later ones; fetch it again"
            )
    return {
        f"{matrix}_exps.weight": [f"{matrix}.{number}.weight" for number in sorted(present)]
        for matrix, present in numbers.items()
    }
