"""Groups that wait for others which never come give up, say so, and leave the device usable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.opencl_models import opencl_model
from support.tiny_models import chunk_of, random_weights, tiny_config

from pyrllama.core import Batch, TopLogits
from pyrllama.errors import DeviceError
from pyrllama.opencl.device import pyopencl
from pyrllama.opencl.program import Program, source_text
from pyrllama.opencl.stage_memory import GRID_WORDS
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.opencl.device import Device
    from pyrllama.opencl.model import OpenClModel

OTHERS, LAST, HURT = 0, 1, 2
ROUNDS = 3
MEETING = """
__kernel void meet(volatile __global int *words, __global int *leaves) {
  __local float scratch[GROUP];
  for (int round = 1; round <= ROUNDS; round++) grid_barrier(words, round);
  const int how = leave_grid(words, scratch);
  if (get_local_id(0) == 0) leaves[get_group_id(0)] = how;
}
"""


@pytest.fixture(scope="module")
def meet(device: Device) -> Callable[[int], tuple[int, list[int]]]:
    """Return a run of one group that finds ``arrived`` arrivals: how it leaves, and the words."""
    cl: Any = pyopencl()
    context = cl.Context([device.handle])
    queue = cl.CommandQueue(context)
    defines = f"#define GROUP 32\n#define ROUNDS {ROUNDS}\n"
    defines += "#define NVIDIA 1\n" * device.is_nvidia
    program = Program(
        device, context, defines + source_text("primitives") + source_text("exchange") + MEETING
    )

    def run(arrived: int) -> tuple[int, list[int]]:
        words, leaves = np.zeros(GRID_WORDS, np.int32), np.full(1, -1, np.int32)
        words[0] = arrived
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        buffers = [cl.Buffer(context, flags, hostbuf=array) for array in (words, leaves)]
        program.launch("meet", 1, 32, *buffers).enqueue(queue)
        for array, buffer in zip((words, leaves), buffers, strict=True):
            cl.enqueue_copy(queue, array, buffer)
        return int(leaves[0]), words.tolist()

    return run


def test_all_meet(meet: Callable[[int], tuple[int, list[int]]]) -> None:
    assert meet(0) == (LAST, [0, 0, 0, 0])


@pytest.mark.parametrize("missing", [1, ROUNDS, 1000])
def test_a_group_that_never_comes(
    meet: Callable[[int], tuple[int, list[int]]], missing: int
) -> None:
    """The words are ready for the next kernel, which meets."""
    assert meet(-missing) == (HURT, [0, 0, 0, 0])
    assert meet(0) == (LAST, [0, 0, 0, 0])


def lose_an_arrival(model: OpenClModel) -> None:
    (stage,) = model._stages
    words = np.array([-1, 0, 0, 0], np.int32)
    pyopencl().enqueue_copy(stage._queue, stage.buffer("words"), words)


def test_a_step_of_one_kernel_that_gives_up(device: Device) -> None:
    """The program is that of the other test of whole models in one kernel: it compiles for long."""
    config = tiny_config()
    weights = random_weights(config, seed=1, std=0.05)
    step = Batch((chunk_of([5], 0, outputs=1),))
    message = r"does not run \d+ groups of \d+ work-items at once, as it seemed to do; end other"
    with opencl_model(device, config, weights, TensorType.F16, persistent=True) as model:
        logits = model.forward(step)[0]
        for run in (model.forward, lambda batch: model.top_logits(batch, 2)):
            lose_an_arrival(model)
            with pytest.raises(DeviceError, match=message):
                run(step)
            np.testing.assert_array_equal(model.forward(step)[0], logits)
        for k in (1, 2):
            (top,) = model.top_logits(step, k)
            assert isinstance(top, TopLogits)
            assert top.ids.tolist() == np.argsort(-logits)[:k].tolist()
            np.testing.assert_array_equal(top.logits, logits[top.ids])
            assert top.mass == pytest.approx(np.exp(logits - logits.max()).sum(), rel=1e-5)
