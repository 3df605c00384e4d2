"""Products of packed weight matrices with several rows of activations, one kernel a storage type.

Groups of 16 rows of weights are unpacked once into panels, and rows of activations, six at a time,
are multiplied with them (``parts.py``).  The twelve 256-bit halves of six vectors of sums are what
sixteen registers hold beside their operands; 32 wide ones hold those of two groups, which share a
panel then (``pair_panels.py``).  Panels of quantised types hold bytes (``panels.py``), or numbers
of 16 bits where signed ones gain by it (``short_panels.py``), and those of types with float32
activations float32 (``float_panels.py``).

Results are summed in the order of ``matvec.py``: a token has the same bits alone, in a batch
and in a prompt.  ``out`` must have room for whole sixes of rows.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pyrllama.cpu.float_panels import float_panels
from pyrllama.cpu.formats import format_named
from pyrllama.cpu.kernel import KernelFunction, View, inline, kernel, view
from pyrllama.cpu.matvec import FLOAT_TYPES
from pyrllama.cpu.pair_panels import pair_panels
from pyrllama.cpu.panels import byte_panels, multiply_packed
from pyrllama.cpu.parts import finish_rows, product_by_parts
from pyrllama.cpu.records import ACTIVATIONS, MATRIX, WIDE_BYTES
from pyrllama.cpu.short_panels import short_panels, suits_shorts

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cpu.formats import Format
    from pyrllama.cpu.vectors import Lanes

Matrix = view(MATRIX)
Activations = view(ACTIVATIONS)


def quantised_product(format_: Format) -> KernelFunction:
    """Return the product kernel of a quantised type."""
    columns, wide = format_.columns, format_.form == WIDE_BYTES
    packed_by_2, packed_by_4 = (multiply_packed(rows, format_) for rows in (2, 4))
    of_many = short_panels(format_) if suits_shorts(format_) else None
    all_rows = product_by_parts(byte_panels(format_), of_many, pair_panels(format_))

    @inline
    def few_rows(p: int, a: View, n_rows: int, out: int, stride: int, accumulate: int) -> None:
        """Multiply a packed group with up to four rows."""
        n_packed = a.n_cols // columns
        if n_rows <= 2:
            finish_rows(2, out, stride, packed_by_2(p, a.bytes, n_packed), accumulate)
        else:
            finish_rows(4, out, stride, packed_by_4(p, a.bytes, n_packed), accumulate)

    @kernel
    def product(
        matrix: int, activations: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int,
    ) -> None:  # fmt: skip
        """Multiply groups ``first`` to ``last``; row ``i`` gives ``out + i * stride``."""
        m, a = Matrix(matrix), Activations(activations)
        if wide:
            a = Activations(a.wide)
        if n_rows <= 4:
            for g in range(first, last):
                p = m.data + g * m.bytes_a_group
                few_rows(p, a, n_rows, out + 64 * g, stride, accumulate)
        else:
            all_rows(
                m, a.bytes, a.bytes_stride, n_rows, out, stride, first, last, accumulate, panel
            )

    return product


def float_product(column_bytes: int, weights: Callable[[int], Lanes]) -> KernelFunction:
    """Return the product kernel of a float type."""
    all_rows = product_by_parts(float_panels(column_bytes, weights))

    @kernel
    def product(
        matrix: int, activations: int, n_rows: int, out: int, stride: int,
        first: int, last: int, accumulate: int, panel: int,
    ) -> None:  # fmt: skip
        """Multiply groups ``first`` to ``last``; row ``i`` gives ``out + i * stride``."""
        m, a = Matrix(matrix), Activations(activations)
        all_rows(m, a.floats, a.floats_stride, n_rows, out, stride, first, last, accumulate, panel)

    return product


@cache
def __getattr__(name: str) -> KernelFunction:
    """Make the kernel of a type when it is asked for."""
    if name in FLOAT_TYPES:
        return float_product(*FLOAT_TYPES[name])
    return quantised_product(format_named(name))
