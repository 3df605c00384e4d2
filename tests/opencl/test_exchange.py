"""Numbers that tell by their lowest bit whether they are those that a reader waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pyrllama.opencl.device import pyopencl
from pyrllama.opencl.program import Program, source_text
from pyrllama.opencl.stage_memory import GRID_WORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.opencl.device import Device

LANES = 32
GAVE_UP = 2
SOURCE = """
__kernel void put(__global float *numbers, __global float *out, int stamp) {
  const int i = get_global_id(0);
  put_stamped(out + i, numbers[i], stamp);
}

__kernel void take(__global float *numbers, __global float *out, int stamp,
                   volatile __global int *words) {
  const int i = get_global_id(0);
  Expected expected = {stamp, words};
  vstore8(await8(load_shared8(numbers + 8 * i), numbers + 8 * i, expected), i, out);
}

// The first group puts what the second waits for.
__kernel void hand_over(
    __global float *numbers, __global float *out, volatile __global int *words) {
  Expected expected = {STAMP(1), words};
  const int i = get_local_id(0);
  if (get_group_id(0) == 0) put_stamped(numbers + i, (float)i, STAMP(1));
  else out[i] = await_one(load_shared(numbers + i), numbers + i, expected);
}
"""


class Exchange:
    """The kernels of this test, run on arrays."""

    def __init__(self, device: Device) -> None:
        self._cl: Any = pyopencl()
        self._context = self._cl.Context([device.handle])
        self._queue = self._cl.CommandQueue(self._context)
        # A wait that ends in vain takes as many looks as this, and not seconds.
        exchange = source_text("exchange").replace("(1 << 22)", "(1 << 12)")
        defines = f"#define GROUP {LANES}\n" + "#define NVIDIA 1\n" * device.is_nvidia
        source = defines + source_text("primitives") + exchange + SOURCE
        self._program = Program(device, self._context, source)

    def _buffer(self, array: NDArray[Any]) -> Any:
        flags = self._cl.mem_flags.READ_WRITE | self._cl.mem_flags.COPY_HOST_PTR
        return self._cl.Buffer(self._context, flags, hostbuf=array)

    def run(
        self, name: str, groups: int, numbers: NDArray[np.float32], *arguments: Any
    ) -> tuple[NDArray[np.float32], bool]:
        """Return what a kernel made of numbers, and whether one gave up waiting."""
        out, words = np.full_like(numbers, -1), np.zeros(GRID_WORDS, np.int32)
        buffers = [self._buffer(array) for array in (numbers, out, words)]
        arguments += (buffers[2],) if name != "put" else ()
        launch = self._program.launch(name, groups, LANES, *buffers[:2], *arguments)
        launch.enqueue(self._queue)
        for array, buffer in zip((out, words), buffers[1:], strict=True):
            self._cl.enqueue_copy(self._queue, array, buffer)
        return out, bool(words[GAVE_UP])


@pytest.fixture(scope="module")
def exchange(device: Device) -> Exchange:
    return Exchange(device)


def numbers_with(bit: int | None = None) -> NDArray[np.float32]:
    """Return numbers of every kind whose lowest bits are all the same, or as they happen to be."""
    rng = np.random.default_rng(7)
    numbers = (rng.standard_normal(8 * LANES) * 10.0 ** rng.integers(-30, 30, 8 * LANES)).astype(
        "f"
    )
    numbers[:4] = 0.0, -0.0, np.nan, 1e-45
    if bit is not None:
        bits = numbers.view(np.uint32)
        bits[:] = bits & ~np.uint32(1) | np.uint32(bit)
    return numbers


@pytest.mark.parametrize("bit", [0, 1])
def test_a_stamp_is_the_lowest_bit_and_nothing_else(exchange: Exchange, bit: int) -> None:
    numbers = numbers_with()
    out, _ = exchange.run("put", 8, numbers, np.int32(2 | bit))
    np.testing.assert_array_equal(out.view(np.uint32) & 1, bit)
    np.testing.assert_array_equal(out.view(np.uint32) >> 1, numbers.view(np.uint32) >> 1)


def test_what_is_not_stamped_stays_as_it_is(exchange: Exchange) -> None:
    numbers = numbers_with()
    for name, groups in (("put", 8), ("take", 1)):
        out, gave_up = exchange.run(name, groups, numbers, np.int32(0))
        np.testing.assert_array_equal(out.view(np.uint32), numbers.view(np.uint32))
        assert not gave_up


@pytest.mark.parametrize("bit", [0, 1])
def test_numbers_that_are_there_are_taken(exchange: Exchange, bit: int) -> None:
    numbers = numbers_with(bit)
    out, gave_up = exchange.run("take", 1, numbers, np.int32(2 | bit))
    np.testing.assert_array_equal(out.view(np.uint32), numbers.view(np.uint32))
    assert not gave_up


@pytest.mark.parametrize("place", [0, 5, 7, 8 * LANES - 1])
def test_one_old_number_is_waited_for_and_not_forever(exchange: Exchange, place: int) -> None:
    numbers = numbers_with(1)
    numbers.view(np.uint32)[place] ^= 1
    _, gave_up = exchange.run("take", 1, numbers, np.int32(3))
    assert gave_up


def test_a_group_takes_what_another_puts(exchange: Exchange) -> None:
    out, gave_up = exchange.run("hand_over", 2, np.zeros(LANES, np.float32))
    expected = (np.arange(LANES, dtype=np.float32).view(np.uint32) | 1).view(np.float32)
    np.testing.assert_array_equal(out, expected)
    assert not gave_up
