"""Tensors on their way into a GGUF file, with rows in the order of the architecture's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.models.families import ARCHITECTURES
from pyrllama.models.rows import Pairing, rotated_heads, take_rows, to_halves
from pyrllama.tensors import Tensor

if TYPE_CHECKING:
    from pyrllama.checkpoints.base import Checkpoint


def read_for_gguf(checkpoint: Checkpoint, name: str) -> Tensor:
    """Return a tensor as a GGUF file of the checkpoint's architecture has it."""
    tensor, config = checkpoint.read(name), checkpoint.config
    if ARCHITECTURES[config.architecture].pairing is Pairing.NEIGHBOURS:
        return tensor
    n_heads = rotated_heads(name, config)
    if n_heads is None:
        return tensor
    order = to_halves(tensor.info.shape[0], n_heads)
    return Tensor(tensor.info, take_rows(tensor.data, order))
