"""The step of one token as one kernel; see ``kernels/persistent.cl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.opencl.program import source_text
from pyrllama.opencl.tuning import norm_stride

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pyrllama.core import ModelConfig, TensorType
    from pyrllama.opencl.parts import Part
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.weights import Matrix

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


def can_persist(matrices: Mapping[str, Sequence[Matrix]], part: Part, n_buffers: int) -> bool:
    """Whether one kernel serves a part: gates and ups are of one type in each layer."""
    if not part.layers or n_buffers > MAX_BUFFERS:
        return False
    # Experts have launches of their own.
    return all(len(matrices.get(f"{layer}.gate_up", ())) == 1 for layer in part.layers)


def n_barriers(part: Part) -> int:
    """Return how often all groups meet in a step."""
    return part.embeds + BARRIERS * len(part.layers)


def persistent_source(
    matrices: Mapping[str, Sequence[Matrix]],
    config: ModelConfig,
    part: Part,
    *,
    n_buffers: int,
    phase_times: bool,
    activation_bytes: int,
) -> str:
    """Return the kernel for a part, to stand behind the functions that it calls."""
    lines = [
        f"#define N_BUFFERS {n_buffers}",
        f"#define ACTIVATION_BYTES_MOST {activation_bytes}",
        f"#define NORM_STRIDE {norm_stride(config)}",
        f"#define DIM {config.dim}",
        f"#define N_PRODUCTS {len(products(matrices, part))}",
        f"#define VOCAB_SIZE {config.vocab_size if part.ends else 0}",
        f"#define EMBEDS {int(part.embeds)}",
        f"#define ENDS {int(part.ends)}",
        f"#define BY_KIND(kind, CALL) {_by_kind(_kinds(matrices, part))}",
    ]
    if part.embeds:
        kind = matrices["embedding"][0].extent.kind
        lines.append(f"#define EMBEDDING(name) name##_{kind.name.lower()}")
    lines += ["#define PHASE_TIMES"] if phase_times else []
    return "\n".join(lines) + f'\n#line 1 "persistent.cl"\n{source_text("persistent")}\n'


def _kinds(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> list[TensorType]:
    """Return the types of all products; a kernel knows them by their places here."""
    return sorted({product.matrix.extent.kind for product in products(matrices, part)})


def _by_kind(kinds: Sequence[TensorType]) -> str:
    """Return C that calls the function of a kind: ``if (kind == 0) CALL(f16); else ...``."""
    calls = [f"CALL({kind.name.lower()})" for kind in kinds]
    return " else ".join(
        [f"if (kind == {i}) {call};" for i, call in enumerate(calls[:-1])] + calls[-1:]
    )


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
        np.float32(stage.config.norm_eps),
        *times,
    )


def places(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> NDArray[np.int64]:
    """Return the table of all products, and of the embedding: ``(products + 1, PLACE)``."""
    kinds, all_of_them = _kinds(matrices, part), products(matrices, part)
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
