"""The source of the one-kernel step, for the products of a part; see ``kernels/persistent.cl``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrllama.opencl.parts import Part
from pyrllama.opencl.persistent import kinds_of, products
from pyrllama.opencl.program import source_text
from pyrllama.opencl.tuning import fills_registers, norm_stride

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.persistent import Product
    from pyrllama.opencl.tuning import Tuning
    from pyrllama.opencl.weights import Matrix
    from pyrllama.tensors import TensorType

MAX_FORMS = 2
"""Of layers that have code of their own: mixtures have few, whose code all takes time to build."""
EARLY_SHARE = 6
"""One in so many groups may be on its way yet when the others look for its stamped results."""


def persistent_defines(
    tuning: Tuning, kinds: Iterable[TensorType], *, copies: bool, stamped: bool
) -> dict[str, int | str]:
    """Return what the kernel, and the functions that it calls, are built with.

    ``stamped`` tells whether a model allows stamps.  A GPU has no registers for them beside a
    table: 7B in Q4_K_M took 2.94 ms with them on an H200, and 2.63 without.
    """
    flags = {
        "STAMPED": stamped and tuning.stamped and copies == tuning.copies,
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

    With ``copies`` it has code of its own for each product of a layer of each form.
    """
    all_of_them = products(matrices, part)
    kinds = kinds_of(all_of_them)
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
    if copies:
        forms = ", ".join(map(str, layer_forms(matrices, part)[1]))
        lines.append(f"__constant const uchar FORMS[] = {{{forms}}};")
    ask, steps = _copies(matrices, part) if copies else _table()
    text = source_text("persistent").replace("  START\n", f"  {ask}\n")
    text = text.replace("  STEPS\n", f'{steps}\n#line 1 "persistent.cl: behind the steps"\n')
    return "\n".join(lines) + f'\n#line 1 "persistent.cl"\n{text}\n'


def layer_forms(
    matrices: Mapping[str, Sequence[Matrix]], part: Part
) -> tuple[list[list[Product]], list[int]]:
    """Return the products of a layer of each form, and every layer's form.

    Layers are of one form if their products are of the same sizes and types.
    """
    forms: dict[tuple[object, ...], list[Product]] = {}
    found = []
    for layer in part.layers:
        of_layer = products(matrices, Part(range(layer, layer + 1), embeds=False, ends=False))
        form = tuple((product.matrix.extent, product.role, product.row) for product in of_layer)
        forms.setdefault(form, of_layer)
        found.append(list(forms).index(form))
    return list(forms.values()), found


def can_copy(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> bool:
    """Whether layers are of so few forms that each has code of its own."""
    return len(layer_forms(matrices, part)[0]) <= MAX_FORMS


def _copies(matrices: Mapping[str, Sequence[Matrix]], part: Part) -> tuple[str, str]:
    """Return what asks for the first product of all, and the loop over layers, and the output."""
    forms, found = layer_forms(matrices, part)
    output = products(matrices, part)[-1] if part.ends else None
    next_layer = _by_form("layer + 1", [_ask("nth + 1", form[0]) for form in forms])
    end = _ask("nth + 1", output) if output else ""
    follows = f"if (layer + 1 < n_layers) {{ {next_layer} }} else {{ {end} }}"
    layers = _by_form("layer", [f"\n{_layer(form, follows)}\n" for form in forms])
    end_of_all = _copy(output, "", meets=False) if output else ""
    return _ask("0", forms[found[0]][0]), f"while (layer < n_layers) {{{layers}}}\n{end_of_all}"


def _by_form(layer: str, code: Sequence[str]) -> str:
    """Return what runs the code of a layer's form, where that differs."""
    if len(set(code)) == 1:
        return code[0]
    first, second = code
    return f"if (FORMS[{layer}] == 0) {{{first}}} else {{{second}}}"


def _layer(form: Sequence[Product], follows: str) -> str:
    """Return the code of a layer, behind which ``follows`` asks for what comes next."""
    lines = []
    for product, follower in zip(form, [*form[1:], None], strict=True):
        ask = _ask("nth + 1", follower) if follower else follows
        meets = follower is None or follower.role != product.role
        lines.append(_copy(product, ask, meets=meets))
    return "\n".join(lines)


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


def _by_kind(kinds: Sequence[TensorType]) -> str:
    """Return C that calls the function of a kind: ``if (kind == 0) CALL(f16); else ...``."""
    calls = [f"CALL({kind.name.lower()})" for kind in kinds]
    return " else ".join(
        [f"if (kind == {i}) {call};" for i, call in enumerate(calls[:-1])] + calls[-1:]
    )
