r"""Time sizes of the OpenCL kernels against each other on one device: one row for each variant.

    python bench/opencl_variants.py --shape 7b --type q4_0 \
        --decode "loads=2,4 group=512,1024 splits=2,4" --prefill "warp_tokens=32,64"

Every variant is all combinations of the named fields of ``Tuning``.  The weights are loaded once.
A decode row gives the time of a step on the device (steps enqueued without waiting), of a whole
``forward``, and of steps that only give their greatest logits; its logits are compared with those
of the batch's kernels, and a prompt's last logits with those of one token.  With ``--phases`` the
persistent kernel notes when its phases begin and end, and a table tells where a step's time goes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from random_gguf import random_checkpoint

from pyrllama.checkpoints.random import SHAPES
from pyrllama.core import Batch, Chunk, TopLogits, blocks_for
from pyrllama.errors import RllamaError
from pyrllama.opencl import choose_devices
from pyrllama.opencl.bandwidth import copy_bandwidth
from pyrllama.opencl.parts import Part, Sizes
from pyrllama.opencl.stage import Stage
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pyrllama.opencl.tuning import Tuning

STEPS, REPETITIONS = 20, 7
CHOICES = (1, 21, 150)
"""Greatest logits that are found on the device: for greedy, the default settings, and many."""
PHASE_MARKS = ("loaded", "computed", "met")
ROLES_OF_A_LAYER = ("qkv", "attention", "attn_output", "gate_up", "ffn_down")


def main() -> None:
    """Load a shape and time the variants that the arguments name."""
    arguments = parse()
    device = choose_devices(None if arguments.device is None else [arguments.device])[0]
    config = SHAPES[arguments.shape]
    if arguments.layers:
        config = dataclasses.replace(config, n_layers=arguments.layers)
    context = max(arguments.contexts)
    config = dataclasses.replace(config, context_length=max(context, config.context_length))
    print(f"{device}, {device.driver}; {arguments.shape} {arguments.type}")
    copy = copy_bandwidth(device)
    print(f"copy bandwidth {copy / 1e12:.3f} TB/s", flush=True)
    n_blocks = blocks_for(context) * max(arguments.sequences, default=1)
    sizes = Sizes(context, n_blocks, min(512, context), TensorType.F16)
    part = Part(range(config.n_layers), embeds=True, ends=True)
    start = time.perf_counter()
    checkpoint = random_checkpoint(config, arguments.type)
    stage = Stage(device, checkpoint, part, sizes, wanted=None, progress=lambda _: None)
    print(f"loaded {stage.weight_bytes / 1e9:.2f} GB in {time.perf_counter() - start:.1f} s")
    base = dataclasses.replace(stage.tuning, **fields(arguments.base))
    for tuning, changed in variants(base, arguments.decode):
        report(stage, tuning, changed, lambda: decode(stage, arguments.contexts, copy))
        if arguments.phases:
            noting = dataclasses.replace(tuning, phase_times=True)
            report(stage, noting, changed, lambda: phases(stage, max(arguments.contexts)))
    for tuning, changed in variants(base, arguments.prefill):
        report(stage, tuning, changed, lambda: prefill(stage, arguments.tokens))
        report(stage, tuning, changed, lambda: together(stage, arguments.sequences, context))
        if arguments.launches:
            report(stage, tuning, changed, lambda: launches(stage, arguments.tokens))
    stage.close()


def parse() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=int)
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--type", default="q4_0", help="of all weights, or a mixture's name")
    parser.add_argument("--base", default="", help="what all variants have: name=value ...")
    parser.add_argument(
        "--decode", action="append", default=[], help="variants of decoding; '' is the default"
    )
    parser.add_argument("--phases", action="store_true", help="tell where a step's time goes")
    parser.add_argument(
        "--prefill", action="append", default=[], help="variants of a prompt; '' is the default"
    )
    parser.add_argument("--sequences", type=int, nargs="+", default=[], help="decoded together")
    parser.add_argument("--launches", action="store_true", help="a prompt's time by kernel")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    return parser.parse_args()


def fields(text: str) -> dict[str, Any]:
    """Return the one value of each field of ``name=value name=value``."""
    return {name: values[0] for name, values in named(text).items()}


def named(text: str) -> dict[str, list[int]]:
    """Return the values of each field of ``name=value,value ...``."""
    pairs = (part.split("=") for part in text.split())
    return {name: [int(value) for value in values.split(",")] for name, values in pairs}


def variants(base: Tuning, texts: list[str]) -> Iterator[tuple[Tuning, str]]:
    """Yield every combination of the values that a text names, text by text."""
    for choices in map(named, texts):
        for values in itertools.product(*choices.values()):
            changed: dict[str, Any] = dict(zip(choices, values, strict=True))
            name = " ".join(f"{name}={value}" for name, value in changed.items())
            yield dataclasses.replace(base, **changed), name or "default"


def report(stage: Stage, tuning: Tuning, changed: str, measure: Any) -> None:
    """Print a variant's figures, or why it cannot run."""
    try:
        if stage.tuning != tuning:
            stage.tune(tuning)
        for line in measure():
            print(f"{changed:40s} {line}", flush=True)
    except RllamaError as error:
        print(f"{changed:40s} failed: {error}", flush=True)


def decode(stage: Stage, contexts: list[int], copy: float) -> Iterator[str]:
    """Yield a line for each context, whose last token is decoded."""
    for context in contexts:
        step = batch_at(context - 1, 1)
        for first in range(0, context, 256):  # the cache must hold numbers that a text gives
            stage.forward(batch_at(first, min(256, context - first), outputs=0))
        expected = stage.forward(batch_at(context - 2, 2))[-1]
        logits = stage.forward(step)[-1]
        error = difference(logits, expected)
        again = stage.forward(step)[-1]
        on_device = median(stage.repeat, step, STEPS) / STEPS
        whole = median(stage.forward, step)
        chosen = ", ".join(choice(stage, step, k) for k in CHOICES)
        (embedding,), (output,) = stage.matrices("embedding"), stage.matrices("output")
        unread = 0 if embedding is output else embedding.extent.n_bytes
        read = stage.weight_bytes - unread
        yield (
            f"decode at {context}: {on_device * 1e3:.3f} ms on the device ({1 / on_device:.1f}/s, "
            f"{read / on_device / 1e12:.3f} TB/s of weights, {read / on_device / copy:.1%} of the "
            f"copy), forward {whole * 1e3:.3f} ms ({1 / whole:.1f}/s), {chosen}; "
            f"error {error:.1e}, repeats {bool(np.array_equal(again, logits))}"
        )


def choice(stage: Stage, step: Batch, k: int) -> str:
    """Return what a step costs whose token is chosen from the greatest logits, on the device."""
    row, (top,) = stage.forward(step)[-1], stage.top_logits(step, k)
    if not isinstance(top, TopLogits):
        return f"top {k} not found on the device"
    same = np.array_equal(top.ids, np.lexsort((np.arange(row.size), -row))[:k])
    on_device = median(stage.repeat, step, STEPS, k) / STEPS
    whole = median(stage.top_logits, step, k)
    return (
        f"top {k} {on_device * 1e3:.3f} ms on the device, {whole * 1e3:.3f} ms in all "
        f"({1 / whole:.1f}/s, {'right' if same else 'WRONG'})"
    )


def phases(stage: Stage, context: int) -> Iterator[str]:
    """Yield a line for each phase of the persistent kernel: microseconds, means over the layers.

    A phase begins when the first group leaves the barrier before it, and ends with the last group;
    the other columns are means over the groups.
    """
    step = batch_at(context - 1, 1)
    gathered: dict[str, list[NDArray[np.float64]]] = {}
    for _ in range(REPETITIONS):
        stage.repeat(step, 1)
        times = stage.phase_times()
        came, left = times[:, :, -2], times[:, :, -1]
        names = ["embedding"] * stage.part.embeds + [*ROLES_OF_A_LAYER] * len(stage.part.layers)
        for i, name in enumerate([*names, "output"]):
            if i:
                begin, end = left[:, i - 1].min(), came[:, i].max()
                # A group without a part of attention has the marks of a phase before.
                marks = times[:, i, :-1] - begin
                means = np.nanmean(np.where(marks < 0, np.nan, marks), axis=0)
                barrier = (left[:, i] - end).mean() if i < len(names) else 0
                row = [(left[:, i - 1] - begin).mean(), *means, end - begin, barrier]
                gathered.setdefault(name, []).append(np.array(row))
    heads = "begun", *PHASE_MARKS, "came", "last", "barrier", "ms a step"
    yield f"{'phase':12s}" + "".join(f"{head:>10s}" for head in heads)
    for name, rows in gathered.items():
        means = np.mean(rows, axis=0) / 1e3
        total = means[-2:].sum() * len(rows) / REPETITIONS / 1e3
        cells = [f"{mean:10.2f}" if mean >= 0 else f"{'-':>10s}" for mean in means]
        yield f"{name:12s}" + "".join(cells) + f"{total:10.3f}"


def prefill(stage: Stage, counts: list[int]) -> Iterator[str]:
    """Yield a line for each number of tokens."""
    for count in counts:
        prompt = batch_at(0, count)
        logits = stage.forward(prompt)[-1]
        again = stage.forward(prompt)[-1]
        error = difference(logits, stage.forward(batch_at(count - 1, 1))[-1])
        seconds = median(stage.forward, prompt)
        yield (
            f"prefill {count}: {seconds * 1e3:.2f} ms, {count / seconds:.0f} tokens/s; "
            f"error {error:.1e}, repeats {bool(np.array_equal(again, logits))}"
        )


def together(stage: Stage, counts: list[int], context: int) -> Iterator[str]:
    """Yield a line for each number of sequences, of each of which the last token is decoded."""
    n_blocks = blocks_for(context)
    for count in counts:
        chunks = (
            Chunk((7 + i,), context - 1, tuple(range(i * n_blocks, (i + 1) * n_blocks)), 1)
            for i in range(count)
        )
        step = Batch(tuple(chunks))
        on_device = median(stage.repeat, step, STEPS) / STEPS
        whole = median(stage.forward, step)
        yield (
            f"{count} sequences at {context}: {on_device * 1e3:.3f} ms on the device "
            f"({count / on_device:.0f} tokens/s), forward {whole * 1e3:.3f} ms "
            f"({count / whole:.0f} tokens/s)"
        )


def launches(stage: Stage, counts: list[int]) -> Iterator[str]:
    """Yield a line for each kernel that reads a prompt: its launches and the time of them all."""
    for count in counts:
        times: dict[str, list[float]] = {}
        stage.timed(batch_at(0, count))
        for name, seconds in stage.timed(batch_at(0, count)):
            times.setdefault(name, []).append(seconds)
        for name, all_of_it in sorted(times.items(), key=lambda item: -sum(item[1])):
            yield (
                f"prefill {count}: {sum(all_of_it) * 1e3:7.3f} ms in {len(all_of_it):3d} launches "
                f"of {name}, median {statistics.median(all_of_it) * 1e6:.1f} us"
            )


def batch_at(start: int, count: int, outputs: int = 1) -> Batch:
    """Return the tokens of one long text from a position on."""
    tokens = np.random.default_rng(0).integers(0, 32_000, start + count)[start:].tolist()
    blocks = tuple(range(blocks_for(start + count)))
    return Batch((Chunk(tuple(tokens), start, blocks, outputs),))


def difference(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the greatest difference, in standard deviations of the logits."""
    return float(np.max(np.abs(logits - expected)) / np.std(expected))


def median(call: Callable[..., object], *arguments: object) -> float:
    """Return the median seconds of a call, the first one apart."""
    seconds = []
    for _ in range(REPETITIONS + 1):
        start = time.perf_counter()
        call(*arguments)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
