"""The step of one token as one kernel; see ``kernels/persistent.cl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.opencl.layout import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.local_memory import LocalMemory
    from pyrllama.opencl.parts import Part
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.weights import Matrix
    from pyrllama.tensors import TensorType

ROLES = ("qkv", "attn_output", "gate_up", "ffn_down")
"""Matrices of a layer, in the order of the kernel's roles; the last role is the output's."""
BARRIERS = len(ROLES) + 1
"""Of a layer: one after each product, and one after attention."""
MAX_BUFFERS = 6
"""Large buffers of weights that the kernel takes."""
PLACE = 8
"""Words of a matrix in the table; see ``kernels/persistent.cl``."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product of a step: a matrix, its role, and where its rows begin in what the role makes."""

    matrix: Matrix
    role: int
    row: int = 0


def products(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> list[Product]:
    """Return the products of a step in their order; those of a role follow each other."""
    names = [(f"{layer}.{role}", nth) for layer in part.layers for nth, role in enumerate(ROLES)]
    found = []
    for name, nth in [*names, ("output", len(ROLES))] if part.ends else names:
        row = 0
        for matrix in matrices[name]:
            found.append(Product(matrix, nth, row))
            row += matrix.extent.rows
    return found


def kinds_of(all_of_them: Iterable[Product]) -> list[TensorType]:
    """Return the types of all products; the table knows them by their places here."""
    return sorted({product.matrix.extent.kind for product in all_of_them})


def can_persist(
    matrices: Mapping[str, Sequence[Matrix]], part: Part, n_buffers: int, memory: LocalMemory
) -> bool:
    """Whether one kernel serves a part: gates and ups come out as pairs in each layer."""
    if not part.layers or n_buffers > MAX_BUFFERS:
        return False
    # Experts have launches of their own.
    return all(gives_pairs(matrices.get(f"{i}.gate_up", ()), memory) for i in part.layers)


def gives_pairs(matrices: Sequence[Matrix], memory: LocalMemory) -> bool:
    """Whether gates and ups are one matrix, of one type, whose sums are whole after one segment.

    SwiGLU is made of each pair at once, so neither sum may be a part of a row's.
    """
    return len(matrices) == 1 and memory.holds_row(matrices[0].extent)


def n_barriers(part: Part) -> int:
    """Return how often all groups meet in a step."""
    return part.embeds + BARRIERS * len(part.layers)


def can_stamp(
    matrices: Mapping[str, Sequence[Matrix]], part: Part, config: ModelConfig, groups: int
) -> bool:
    """Whether numbers can tell by themselves that they are there; see ``kernels/exchange.cl``.

    Every group must have results of every product, and no columns may be there that nobody writes.
    """
    rows = [
        product.matrix.extent.rows // (1 + (ROLES[product.role] == "gate_up"))
        for product in products(matrices, part)
        if product.role < len(ROLES)
    ]
    widths = config.dim, config.q_dim, config.ffn_dim, config.q_dim + 2 * config.kv_dim
    return min(rows) >= groups and all(width % BLOCK == 0 for width in widths)


def persistent_launch(stage: Stage, program: Program, attention: tuple[Any, ...]) -> Launch:
    """Make the launch of the kernel, its arguments set."""
    buffers = stage.weight_buffers
    weights = [buffers[min(i, len(buffers) - 1)] for i in range(MAX_BUFFERS)]
    names = "x", "qkv", "hidden", "logits", "greatest", "masses", "top", "words"
    named = (stage.buffer(name) for name in names)
    times = (stage.buffer("times"),) if stage.tuning.phase_times else ()
    return program.launch(
        "persistent_step",
        stage.tuning.groups,
        stage.tuning.group,
        *weights,
        stage.buffer("places"),
        stage.buffer("norms"),
        *attention,
        *named,
        *times,
    )


def places(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> NDArray[np.int64]:
    """Return the table of all products, and of the embedding: ``(products + 1, PLACE)``."""
    all_of_them = products(matrices, part)
    kinds = kinds_of(all_of_them)
    table = np.zeros((len(all_of_them) + 1, PLACE), np.int64)
    for i, product in enumerate(all_of_them):
        kind = kinds.index(product.matrix.extent.kind)
        table[i] = *_where(product.matrix), kind, product.role, product.row
    if part.embeds:
        table[-1, : PLACE - 3] = _where(matrices["embedding"][0])
    return table


def _where(matrix: Matrix) -> tuple[int, ...]:
    """Return the words that tell where a matrix stands, and its size."""
    extent = matrix.extent
    return matrix.buffer, matrix.offset, matrix.scale_offset, extent.rows, extent.n_units
