"""What a device can do beyond OpenCL 1.2, found by running a few small kernels on it."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.opencl.device import Feature, pyopencl
from pyrllama.opencl.program import OPTIONS, compiled, source_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.opencl.device import Device

HALF = """
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
__kernel void trial(__global int *out) { half x = (half)out[0]; out[0] = (int)(x * (half)21); }
"""
INTEGER_DOT = """
__kernel void trial(__global int *out) {
  out[0] = dot_4x8packed_ss_int(0x02030405u, 0x01010101u * (uint)out[0]) * 3 / 2;
}
"""
SUBGROUPS = """
#pragma OPENCL EXTENSION cl_khr_subgroups : enable
__kernel void trial(__global int *out) {
  int sum = sub_group_reduce_add(1);
  if (get_global_id(0) == 0) out[0] = sum == (int)get_sub_group_size() ? 42 : 0;
}
"""
INLINE_PTX = """
__kernel void trial(__global int *out) {
  int sum;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(0x01010101), "r"(0x0a0a0a0a), "r"(out[0]));
  out[0] = sum;
}
"""
TENSOR_CORES = """
__kernel void trial(__global int *out) {
  uint4 ones = (uint4)(0x3c003c00u);
  float sum[4] = {5.0f, 5.0f, 5.0f, 5.0f};
  int n = out[0];
  for (int i = 0; i < n; i++) tensor_product(sum, ones, ones.x, ones.y);
  if (get_global_id(0) == 0) out[0] = (int)sum[3] + 5;
}
"""
WARPGROUPS = """
__kernel void trial(__global int *out) {
  __local uint4 ones[WIDE_BYTES / 16] __attribute__((aligned(1024)));
  for (int i = get_local_id(0); i < WIDE_BYTES / 16; i += 128) ones[i] = (uint4)(0x3c003c00u);
  publish_barriers();
  LOCAL_FENCE;
  uint fragments[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
  float sums[64];
  #pragma unroll
  for (int i = 0; i < 64; i++) sums[i] = 5.0f;
  products_fence();
  warpgroup_product(sums, fragments, local_operand(local_address(ones)));
  products_commit();
  PRODUCTS_WAIT(0);
  if (get_global_id(0) == 0) out[0] = (int)sums[63] * out[0];
}
"""
GRID_BARRIER = """
__kernel void trial(__global int *out, volatile __global int *words) {
  for (int round = 1; round <= 10; round++) grid_barrier(words, round);
  if (get_global_id(0) == 0) out[0] = words[GAVE_UP] ? 0 : 42;
}
"""
ANSWER = 42
"""What every trial leaves, having found 2 there."""


@cache
def features(device: Device) -> frozenset[Feature]:
    """Return what a device was seen to do; some trials take a second the first time."""
    extensions = device.handle.extensions.split()
    found: dict[Feature, Callable[[], bool]] = {
        Feature.HALF: lambda: "cl_khr_fp16" in extensions and _works(device, HALF),
        Feature.INTEGER_DOT: lambda: (
            "cl_khr_integer_dot_product" in extensions
            and _works(device, INTEGER_DOT, options=("-cl-std=CL3.0",))
        ),
        Feature.SUBGROUPS: lambda: (
            "cl_khr_subgroups" in extensions
            and _works(device, SUBGROUPS, options=("-cl-std=CL2.0",))
        ),
        Feature.INLINE_PTX: lambda: device.is_nvidia and _works(device, INLINE_PTX),
        Feature.TENSOR_CORES: lambda: device.is_nvidia and _tensor_cores(device),
        Feature.WARPGROUPS: lambda: device.is_nvidia and _warpgroups(device),
        Feature.GRID_BARRIER: lambda: device.is_nvidia and grid_waits(device),
    }
    return frozenset(feature for feature, trial in found.items() if trial())


def _tensor_cores(device: Device) -> bool:
    prelude = "#define NVIDIA\n#define TENSOR\n#define GROUP 32\n"
    source = prelude + source_text("primitives") + source_text("tensor") + TENSOR_CORES
    return _works(device, source)


def _warpgroups(device: Device) -> bool:
    prelude = "#define NVIDIA\n#define TENSOR\n#define WARPGROUP\n#define GROUP 128\n"
    sizes = "#define WIDE_TOKENS 128\n#define WIDE_COLS 32\n"
    source = prelude + sizes + source_text("primitives") + source_text("warpgroup") + WARPGROUPS
    return _works(device, source, group=128)


def grid_waits(device: Device, group: int = 256) -> bool:
    """Whether a group on every compute unit of a device can wait for all others."""
    prelude = f"#define NVIDIA\n#define GROUP {group}\n"
    source = prelude + source_text("primitives") + source_text("exchange") + GRID_BARRIER
    return _works(device, source, groups=device.compute_units, group=group, words=True)


def _works(
    device: Device,
    source: str,
    *,
    groups: int = 1,
    group: int = 32,
    words: bool = False,
    options: tuple[str, ...] = OPTIONS,
) -> bool:
    """Build and run a trial; anything that goes wrong means no."""
    cl: Any = pyopencl()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context = cl.Context([device.handle])
            queue = cl.CommandQueue(context)
            program = compiled(device, context, source, options)
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        out = np.array([2, 0, 0, 0], np.int32)
        buffers = [cl.Buffer(context, flags, hostbuf=out)]
        if words:
            buffers.append(cl.Buffer(context, flags, hostbuf=np.zeros(4, np.int32)))
        program.trial(queue, (groups * group,), (group,), *buffers)
        cl.enqueue_copy(queue, out, buffers[0])
    except cl.Error:
        return False
    return int(out[0]) == ANSWER
