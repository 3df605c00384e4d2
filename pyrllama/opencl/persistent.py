"""The step of one token as one kernel; see ``kernels/persistent.cl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.opencl.layout import BLOCK
from pyrllama.opencl.program import source_text
from pyrllama.opencl.tuning import fills_registers, norm_stride

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.local_memory import LocalMemory
    from pyrllama.opencl.parts import Part
    from pyrllama.opencl.program import Launch, Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.tuning import Tuning
    from pyrllama.opencl.weights import Matrix
    from pyrllama.tensors import TensorType

ROLES = ("qkv", "attn_output", "gate_up", "ffn_down")
"""Matrices of a layer, in the order of the kernel's roles; the last role is the output's."""
BARRIERS = len(ROLES) + 1
"""Of a layer: one after each product, and one after attention."""
MAX_BUFFERS = 6
"""Large buffers of weights that the kernel takes."""
EARLY_SHARE = 6
"""One in so many groups may be on its way yet when the others look for its stamped results."""
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


def persistent_defines(
    tuning: Tuning, kinds: Iterable[TensorType], *, copies: bool, stamped: bool
) -> dict[str, int | str]:
    """Return what the kernel, and the functions that it calls, are built with."""
    flags = {
        "STAMPED": stamped,
        "SIZES_KNOWN": copies,
        "WORKED_OUT_ANEW": copies and fills_registers(tuning, kinds),
    }
    early = tuning.groups // EARLY_SHARE
    return {
        "GROUPS": tuning.groups,
        "EARLY": early,
        **{name: 1 for name, on in flags.items() if on},
    }


def persistent_source(
    matrices: Mapping[str, Sequence[Matrix]],
    config: ModelConfig,
    part: Part,
    *,
    n_buffers: int,
    copies: bool,
    activation_bytes: int,
) -> str:
    """Return the kernel for a part, to stand behind the functions that it calls.

    With ``copies`` it has code of its own for each product of a layer; layers must be alike then.
    """
    all_of_them = products(matrices, part)
    kinds = _kinds(all_of_them)
    lines = [
        f"#define N_BUFFERS {n_buffers}",
        f"#define ACTIVATION_BYTES_MOST {activation_bytes}",
        f"#define NORM_STRIDE {norm_stride(config)}",
        f"#define DIM {config.dim}",
        f"#define FFN_DIM {config.ffn_dim}",
        f"#define EPS {float(np.float32(config.norm_eps)).hex()}f",
        f"#define N_PRODUCTS {len(all_of_them)}",
        f"#define VOCAB_SIZE {config.vocab_size if part.ends else 0}",
        f"#define EMBEDS {int(part.embeds)}",
        f"#define ENDS {int(part.ends)}",
        f"#define BY_KIND(kind, CALL) {_by_kind(kinds)}",
        *(f"#define {_caller(kind)}(CALL) CALL({kind.name.lower()})" for kind in kinds),
    ]
    if part.embeds:
        kind = matrices["embedding"][0].extent.kind
        lines.append(f"#define EMBEDDING(name) name##_{kind.name.lower()}")
    ask, steps = _copies(all_of_them, part) if copies else _table()
    text = source_text("persistent").replace("  START\n", f"  {ask}\n")
    text = text.replace("  STEPS\n", f'{steps}\n#line 1 "persistent.cl: behind the steps"\n')
    return "\n".join(lines) + f'\n#line 1 "persistent.cl"\n{text}\n'


def layers_alike(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> bool:
    """Whether the products of all layers of a part are of the same sizes and types."""
    all_of_them = products(matrices, part)
    sizes = [
        (product.matrix.extent, product.role, product.row)
        for product in all_of_them[: len(all_of_them) - part.ends]
    ]
    count = len(sizes) // len(part.layers)
    return sizes == sizes[:count] * len(part.layers)


def _copies(all_of_them: Sequence[Product], part: Part) -> tuple[str, str]:
    """Return what asks for the first product of all, and the loop over layers, and the output."""
    last = all_of_them[-1]
    layer = all_of_them[: (len(all_of_them) - part.ends) // len(part.layers)]
    lines = ["while (layer < n_layers) {"]
    for product, follower in zip(layer, [*layer[1:], None], strict=True):
        ask = _ask("nth + 1", follower or layer[0])
        if follower is None:
            end = _ask("nth + 1", last) if part.ends else ""
            ask = f"if (layer + 1 < n_layers) {{ {ask} }} else {{ {end} }}"
        meets = follower is None or follower.role != product.role
        lines.append(_copy(product, ask, meets=meets))
    lines.append("}")
    if part.ends:
        lines.append(_copy(last, "", meets=False))
    return _ask("0", layer[0]), "\n".join(lines)


def _ask(index: str, product: Product) -> str:
    """Return C that asks for what a product reads first."""
    extent = product.matrix.extent
    sizes = f"{extent.rows}, {extent.n_units}"
    return f"ASK({index}, {product.role}, {sizes}, {_caller(extent.kind)})"


def _copy(product: Product, ask: str, *, meets: bool) -> str:
    """Return the code of a product of known sizes, behind which ``ask`` asks for the next one's."""
    extent = product.matrix.extent
    return _step(
        role=product.role,
        rows=extent.rows,
        units=extent.n_units,
        out=product.row,
        call=f"{_caller(extent.kind)}(CALL)",
        next=ask,
        meets=int(meets),
    )


def _table() -> tuple[str, str]:
    """Return the same as ``_copies`` for a loop over a table of all products."""
    words = "WORD_AT({0}, PLACE_ROLE), WORD_AT({0}, PLACE_ROWS), WORD_AT({0}, PLACE_ROW_UNITS)"
    callers = (
        "#define FIRST_CALL(CALL) BY_KIND(KIND_AT(0), CALL)\n"
        "#define NEXT_CALL(CALL) BY_KIND(KIND_AT(nth + 1), CALL)\n"
    )
    ask = f"ASK(nth + 1, {words.format('nth + 1')}, NEXT_CALL)"
    step = _step(
        role="WORD_AT(nth, PLACE_ROLE)",
        rows="WORD_AT(nth, PLACE_ROWS)",
        units="WORD_AT(nth, PLACE_ROW_UNITS)",
        out="WORD_AT(nth, PLACE_OUT)",
        call="BY_KIND(KIND_AT(nth), CALL)",
        next=f"if (nth + 1 < N_PRODUCTS) {{ {ask} }}",
        # Parts of a layer's queries, keys and values in several types do not wait for each other.
        meets="MEETS(role != ROLE_OUTPUT && "
        "(nth + 1 == N_PRODUCTS || WORD_AT(nth + 1, PLACE_ROLE) != role))",
    )
    first = f"\n{callers}  ASK(0, {words.format('0')}, FIRST_CALL)"
    return first, f"while (nth < N_PRODUCTS) {{\n{step}}}\n"


def _step(**facts: str | int) -> str:
    """Return ``kernels/step.cl`` for a product of which these facts are known."""
    names = {name: f"STEP_{name.upper()}" + "(CALL)" * (name == "call") for name in facts}
    before = "".join(f"#define {names[name]} {fact}\n" for name, fact in facts.items())
    after = "".join(f"#undef {name.partition('(')[0]}\n" for name in names.values())
    return f'{before}#line 1 "step.cl"\n{source_text("step")}{after}'


def _caller(kind: TensorType) -> str:
    """Name the macro that calls a function of a type."""
    return f"CALL_{kind.name}"


def _kinds(all_of_them: Iterable[Product]) -> list[TensorType]:
    """Return the types of all products; the table knows them by their places here."""
    return sorted({product.matrix.extent.kind for product in all_of_them})


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
        *times,
    )


def places(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> NDArray[np.int64]:
    """Return the table of all products, and of the embedding: ``(products + 1, PLACE)``."""
    all_of_them = products(matrices, part)
    kinds = _kinds(all_of_them)
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
