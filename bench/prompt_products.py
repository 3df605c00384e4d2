"""Measure the matrix products of a prompt, in turn, and those of PyTorch's oneDNN if it is there.

    python bench/prompt_products.py --threads 2 --rows 512
    python bench/prompt_products.py --threads 1 --rows 192 --types q4_k q6_k

The shapes are those of Llama 3.2 1B.  PyTorch multiplies bfloat16 (on AMX where the CPU has it);
ours multiply the packed weights of each type.  Every line has the GFLOP/s of the turns after the
first, the median and the best.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.checkpoints.random import SHAPES, RandomCheckpoint
from pyrllama.cpu import compiler, target
from pyrllama.cpu.records import BYTES, FLOATS, TILES, WIDE_BYTES
from pyrllama.cpu.scratch import ActivationRows, Rows, panel_bytes
from pyrllama.cpu.team import Team
from pyrllama.cpu.weights import Matrices, kernel_names
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "blk.0.ffn_gate.weight"
MATRICES = ((2048, 2048), (8192, 2048), (2048, 8192))
"""Rows and columns of the matrices of attention, of the FFN's gate, and of its way down."""
TYPES = ("q4_0", "q8_0", "f16", "bf16")
TURNS = 8


class Ours:
    """A random matrix of a type times rows of activations, groups shared by threads."""

    def __init__(self, kind: TensorType, rows: int, cols: int, n: int, threads: int) -> None:
        config = dataclasses.replace(SHAPES["1b"], n_layers=1, dim=cols, ffn_dim=rows)
        checkpoint = RandomCheckpoint(config, kind)
        self._matrices = Matrices(checkpoint, [NAME], None)
        self._team = Team(threads)
        self._matrices.pack_all(self._team, None)
        self._x, self._out = ActivationRows(n, cols), Rows(n, rows)
        self._x.x.values[:n, :cols] = np.random.default_rng(0).standard_normal((n, cols))
        forms = FLOATS | BYTES | WIDE_BYTES | TILES
        compiler.load("sixes.prepare_kernel").call(self._x.address, n, forms, 0, cols // 32)
        names = kernel_names(kind)
        self._product = compiler.load(names.get("tile_matmul", names["matmul"]))
        self._panels = [Rows(1, panel_bytes() // 4) for _ in range(threads)]
        self._n_groups, self._n, self._threads = rows // 16, n, threads

    def __call__(self) -> None:
        """Multiply once."""
        edges = np.linspace(0, self._n_groups, self._threads + 1).astype(int) // 2 * 2
        threads = [
            threading.Thread(target=self._share, args=(i, int(edges[i]), int(edges[i + 1])))
            for i in range(1, self._threads)
        ]
        for thread in threads:
            thread.start()
        self._share(0, 0, int(edges[1]))
        for thread in threads:
            thread.join()

    def _share(self, worker: int, first: int, last: int) -> None:
        for g in range(first, last, 32):
            self._product.call(
                self._matrices.address(NAME), self._x.address, self._n, self._out.address,
                self._out.stride, g, min(g + 32, last), 0, self._panels[worker].address,
            )  # fmt: skip


def onednn(rows: int, cols: int, n: int) -> Callable[[], Any]:
    """Return PyTorch's product of the same shape in bfloat16."""
    import torch  # noqa: PLC0415

    x, w = (torch.randn(count, cols, dtype=torch.bfloat16) for count in (n, rows))
    return lambda: torch.nn.functional.linear(x, w)


def main() -> None:
    """Let the products take turns, shape by shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=512, help="rows of activations")
    parser.add_argument("--types", nargs="+", default=TYPES, help="of weights [%(default)s]")
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    has_torch = importlib.util.find_spec("torch") is not None
    if has_torch:
        import torch  # noqa: PLC0415

        torch.set_num_threads(options.threads)
    kinds = [TensorType[name.upper()] for name in options.types]
    print(f"{target.chosen().name}, {options.threads} threads, {options.rows} rows")
    for rows, cols in MATRICES:
        products: dict[str, Callable[[], Any]] = {}
        if has_torch:
            products["oneDNN BF16"] = onednn(rows, cols, options.rows)
        for kind in kinds:
            products[kind.name] = Ours(kind, rows, cols, options.rows, options.threads)
        seconds: dict[str, list[float]] = {name: [] for name in products}
        for _ in range(options.turns):
            for name, product in products.items():
                start = time.perf_counter()
                product()
                seconds[name].append(time.perf_counter() - start)
        work = 2 * rows * cols * options.rows / 1e9
        rates = {
            name: f"{work / statistics.median(times[1:]):.0f} ({work / min(times[1:]):.0f})"
            for name, times in seconds.items()
        }
        print(f"{rows} x {cols}:", ", ".join(f"{name} {rate}" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
