"""The step of one token as one kernel; see ``kernels/persistent.cl``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.opencl.program import source_text
from pyrllama.opencl.tuning import norm_stride

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyrllama.core import ModelConfig
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Part, Stage
    from pyrllama.opencl.weights import Matrix

ROLES = ("qkv", "attn_output", "gate_up", "ffn_down")
"""Matrices of a layer, in the order of the kernel's table."""
BARRIERS = len(ROLES) + 1
"""Of a layer: one after each product, and one after attention."""
MAX_BUFFERS = 6
"""Large buffers of weights that the kernel takes."""
PLACE = 3
"""Words of a matrix in the table: its buffer, its units and its scales."""


def can_persist(matrices: Mapping[str, Sequence[Matrix]], part: Part, n_buffers: int) -> bool:
    """Whether one kernel serves a part: each role is one matrix, of one type in all layers."""
    if not part.layers or n_buffers > MAX_BUFFERS:
        return False
    if f"{part.layers[0]}.router" in matrices:  # experts have launches of their own
        return False
    for role in ROLES:
        groups = [matrices[f"{layer}.{role}"] for layer in part.layers]
        if any(len(group) > 1 for group in groups):
            return False
        if len({group[0].extent.kind for group in groups}) > 1:
            return False
    return True


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
    first = part.layers[0]
    roles = {role: matrices[f"{first}.{role}"][0] for role in ROLES}
    roles |= {end: matrices[end][0] for end in ("embedding", "output") if end in matrices}
    lines = [
        f"#define N_BUFFERS {n_buffers}",
        f"#define ACTIVATION_BYTES_MOST {activation_bytes}",
        f"#define NORM_STRIDE {norm_stride(config)}",
        f"#define DIM {config.dim}",
        f"#define FFN_DIM {config.ffn_dim}",
        f"#define VOCAB_SIZE {config.vocab_size if part.ends else 0}",
    ]
    lines += [f"#define EMBEDS {int(part.embeds)}", f"#define ENDS {int(part.ends)}"]
    lines += ["#define PHASE_TIMES"] if phase_times else []
    for role, matrix in roles.items():
        name, kind = role.upper(), matrix.extent.kind
        lines += [
            f"#define {name}(name) name##_{kind.name.lower()}",
            f"#define {name}_UNITS {matrix.extent.n_units}",
        ]
    return "\n".join(lines) + f'\n#line 1 "persistent.cl"\n{source_text("persistent")}\n'


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


def places(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> np.ndarray[Any, Any]:
    """Return the table of where every matrix stands: ``(matrices, PLACE)`` int64."""
    names = [f"{layer}.{role}" for layer in part.layers for role in ROLES]
    table = np.zeros((len(names) + 2, PLACE), np.int64)
    for i, name in enumerate((*names, "output", "embedding")):
        if name in matrices:
            matrix = matrices[name][0]
            table[i] = matrix.buffer, matrix.offset, matrix.scale_offset
    return table
