"""The kernels of experts: they choose, sort, multiply for a token alone, and add."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.opencl_models import tuning_for
from support.tiny_models import tiny_config

from pyrllama.model_config import Experts
from pyrllama.opencl.batch import HEADER, N_TOKENS
from pyrllama.opencl.defines import defines
from pyrllama.opencl.device import pyopencl
from pyrllama.opencl.layout import BLOCK, extent_of, pack, round_up
from pyrllama.opencl.local_memory import local_memory
from pyrllama.opencl.program import OPTIONS, UNOPTIMISED, Program, model_source
from pyrllama.quants import dequantize, quantize
from pyrllama.reference import ops
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from pyrllama.opencl.device import Device

N_ROWS = 19
EPS = 1e-5
ACTIVATION_ROUNDING = 2e-3
"""Norms may be rounded to another int8, of which steps are about 0.02 times a weight."""
EXPERTS = (
    Experts(5, 1, normalised=False),
    Experts(7, 7),
    Experts(70, 8),
)

each_mixture = pytest.mark.parametrize("experts", EXPERTS, ids=lambda e: f"{e.used}_of_{e.count}")


class Routing:
    """The kernels of one number of experts, for some types, and a queue to run them in."""

    def __init__(
        self,
        device: Device,
        experts: Experts,
        kinds: Collection[TensorType] = (),
        **sizes: int,
    ) -> None:
        cl = pyopencl()
        config = tiny_config(experts=experts, **sizes)
        tuning = tuning_for(device, config)
        words = defines(
            tuning,
            config,
            local_memory(device, config, tuning),
            kv_type=TensorType.F16,
            max_tokens=N_ROWS,
            max_seq_len=N_ROWS,
        )
        self._context = cl.Context([device.handle])
        self._queue = cl.CommandQueue(self._context)
        options = OPTIONS if tuning.optimise else (*OPTIONS, UNOPTIMISED)
        self._program = Program(device, self._context, model_source(words, kinds), options)
        self.group = tuning.group

    def run(self, name: str, groups: int, *arguments: Any, slots: int = 1) -> None:
        """Run a kernel; arrays among its arguments get what it wrote to them."""
        cl = pyopencl()
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        given = [
            cl.Buffer(self._context, flags, hostbuf=a) if isinstance(a, np.ndarray) else a
            for a in (np.int32(a) if isinstance(a, int) else a for a in arguments)
        ]
        launch = self._program.launch(name, groups, self.group, *given, slots=slots)
        launch.enqueue(self._queue)
        for argument, buffer in zip(arguments, given, strict=True):
            if isinstance(argument, np.ndarray):
                cl.enqueue_copy(self._queue, argument, buffer)


def router_logits(count: int) -> NDArray[np.float32]:
    """Return logits of which some are equal, and some so small that their exponentials are 0."""
    rng = np.random.default_rng(count)
    logits = rng.integers(-6, 7, (N_ROWS, count)).astype(np.float32)
    logits[1:] += rng.normal(0.0, 1.0, (N_ROWS - 1, count)).astype(np.float32)
    logits[-1] *= 100
    return logits


@each_mixture
def test_experts_are_chosen_as_in_the_reference(device: Device, experts: Experts) -> None:
    logits = router_logits(experts.count)
    padded = np.pad(logits, ((0, 0), (0, round_up(experts.count, BLOCK) - experts.count)))
    chosen = np.zeros((N_ROWS, experts.used), np.int32)
    weights = np.zeros((N_ROWS, experts.used), np.float32)
    Routing(device, experts).run("choose_experts", N_ROWS, padded, chosen, weights)
    expected = ops.choose_experts(logits, experts.used, normalised=experts.normalised)
    np.testing.assert_array_equal(chosen, expected[0])
    np.testing.assert_allclose(weights, expected[1], rtol=1e-5, atol=1e-30)


@each_mixture
def test_pairs_are_sorted_and_come_back_to_their_tokens(device: Device, experts: Experts) -> None:
    routing, rng = Routing(device, experts), np.random.default_rng(2)
    chosen, weights = ops.choose_experts(
        router_logits(experts.count), experts.used, normalised=experts.normalised
    )
    batch = np.zeros(HEADER, np.int32)
    batch[N_TOKENS] = N_ROWS
    runs = np.full((experts.count, 2), -1, np.int32)
    places, tokens = (np.full(chosen.size, -1, np.int32) for _ in range(2))
    pairs = chosen.astype(np.int32)
    routing.run("sort_by_expert", experts.count, batch, pairs, runs, places, tokens)
    order = np.argsort(chosen.ravel(), kind="stable")
    np.testing.assert_array_equal(tokens, order // experts.used)
    np.testing.assert_array_equal(places[order], np.arange(chosen.size))
    counts = np.bincount(chosen.ravel(), minlength=experts.count)
    np.testing.assert_array_equal(runs, np.stack([np.cumsum(counts) - counts, counts], axis=1))

    rows = rng.integers(0, 1 << 30, (N_ROWS, 12)).astype(np.uint32)
    gathered = np.zeros((chosen.size, 12), np.uint32)
    routing.run("gather_rows", chosen.size, rows, tokens, gathered, 3)
    np.testing.assert_array_equal(gathered, rows[tokens])

    x, results = (rng.normal(size=(n, 64)).astype(np.float32) for n in (N_ROWS, chosen.size))
    weights = weights.astype(np.float32)
    of_tokens = results[places].reshape(N_ROWS, experts.used, 64)
    expected = x + np.einsum("tec,te->tc", of_tokens, weights)
    expected[:, 50:] = x[:, 50:]  # padding
    slots = -(-64 // routing.group)
    routing.run("add_experts", N_ROWS, x, results, weights, places, 1, 50, 64, slots=slots)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("expert_swiglu_product", TensorType.Q4_K), ("expert_product", TensorType.Q8_0)],
    ids=str,
)
def test_a_token_alone_is_multiplied_by_its_experts(
    device: Device, name: str, kind: TensorType
) -> None:
    experts, cols, swiglu = Experts(5, 3), 256, name == "expert_swiglu_product"
    rng, n_rows = np.random.default_rng(6), 74 if swiglu else 37
    numbers = rng.normal(0.0, 0.1, (experts.count * n_rows, cols)).astype(np.float32)
    stored = quantize(kind, numbers)
    matrices = dequantize(kind, stored, cols).reshape(experts.count, n_rows, cols)
    chosen = np.array([4, 0, 3], np.int32)
    weight = rng.uniform(0.5, 1.5, cols).astype(np.float32)
    x = rng.normal(0.0, 1.0, (experts.used, cols)).astype(np.float32)
    if swiglu:  # all read the same row
        rows = ops.rms_norm(np.repeat(x[:1], experts.used, 0), weight, EPS)
        arguments: tuple[Any, ...] = x[0], weight, cols, np.float32(EPS)
    else:
        rows, arguments = x, (x, cols)
    units, scales = pack(kind, stored, cols)
    out = np.zeros((experts.used, 64), np.float32)
    Routing(device, experts, {TensorType.Q4_K, TensorType.Q8_0}, dim=cols, ffn_dim=cols).run(
        f"{name}_{kind.name.lower()}",
        2,
        *(units, scales, len(numbers), extent_of(kind, numbers.shape).n_units),
        *(chosen, *arguments, out, 64),
        slots=experts.used,
    )
    expected = np.zeros_like(out)
    for slot, expert in enumerate(chosen):
        (row,) = ops.matmul_int8(rows[slot : slot + 1], matrices[expert])
        expected[slot, :37] = ops.swiglu(row[:37], row[37:]) if swiglu else row
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=ACTIVATION_ROUNDING)
