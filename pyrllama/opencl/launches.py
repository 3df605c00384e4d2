"""What launches of one token and of a batch have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.opencl.heads import has_extras
from pyrllama.opencl.layout import BLOCK, round_up

if TYPE_CHECKING:
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.weights import Matrix


def embed(stage: Stage, program: Program) -> Launch:
    """Return the launch that unpacks the embedding of a token, or of each of a batch."""
    (matrix,) = stage.matrices("embedding")
    units, scales, _, n_units = matrix.arguments
    stride = np.int32(round_up(stage.config.dim, BLOCK))
    arguments = units, scales, n_units, stage.buffer("batch"), stage.buffer("x"), stride
    return program.launch(f"embed_{suffix(matrix)}", 1, stage.tuning.group, *arguments)


def attention_arguments(stage: Stage, index: int) -> tuple[Any, ...]:
    """Return the arguments by which kernels know the attention of a stage's layer."""
    names = "qkv", "rope", "cache", "batch", "parts", "shares"
    sizes = np.int32(index), np.int32(len(stage.part.layers))
    extras = (stage.buffer("head_extras"),) if has_extras(stage.config) else ()
    return *(stage.buffer(name) for name in names), *sizes, *extras


def suffix(matrix: Matrix) -> str:
    """Return what the names of the kernels for a matrix's type end with."""
    return matrix.extent.kind.name.lower()
