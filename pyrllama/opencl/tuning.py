"""Sizes of the kernels that depend on the device and the model, not on what is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrllama.errors import DeviceError
from pyrllama.opencl.device import Feature
from pyrllama.opencl.features import features
from pyrllama.opencl.layout import ALIGNMENT, BLOCK, FLOAT, LANES, LAYOUTS, UNIT_BYTES, round_up
from pyrllama.opencl.local_memory import MAX_LOCAL, RESERVED_LOCAL
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device

MAX_SPLITS = 8
MAX_HEADS_AT_ONCE = 4
WIDE_UNITS = {TensorType.F16, TensorType.BF16, TensorType.Q8_0}
"""Types of which a lane does little for each byte."""
ATTENTION_GROUP = 128
"""Work-items of a group that attends from a tile of rows."""
ATTENTION_PAD = 4
"""Floats between the rows of its local memory; see ``kernels/attention_tiles.cl``."""
TENSOR_ATTENTION_ROWS = ATTENTION_GROUP // LANES * 16
"""Rows of a tile that attends on Tensor Cores, 16 a warp; see ``kernels/attention_tensor.cl``."""
WIDE_HEIGHTS, WIDE_TOKENS = (192, 128), 128
"""Of a tile that warpgroups multiply; see ``kernels/wide.cl``."""
HELD_WORDS = 24
"""Registers that a work-item's loads may take where others hold what layers have in common."""
FEW_GROUP, FEW_ROWS = 256, 32
"""Of a product of few rows of activations; see ``kernels/few.cl``."""
FEW_COUNTS = (8, 16, 32)
"""For how many it is built."""

TOP_PARTS = 1024
"""Parts of a row of logits, at most, of each of which the greatest is known."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How work is cut up; every choice gives the same text."""

    group: int = 64
    """Work-items of a work-group, a multiple of 32."""
    groups: int = 64
    """Work-groups that a product of one token takes at most."""
    loads: int = 4
    """16-byte loads of a work-item for a task, of which two are on their way at a time."""
    second_loads: int = 4
    """How many it asks for of the second task before it has what they are multiplied with."""
    heads: int = 1
    """Heads that share keys from which a team attends at a time."""
    splits: int = 2
    """Parts into which attention of single rows cuts the positions of a sequence."""
    attention_rows: int = 0
    """Rows of a sequence that attend as one tile, 32 or 16; 0 makes all rows attend singly."""
    tensor_cores: bool = False
    tensor_rows: int = 128
    tensor_tokens: int = 128
    warp_rows: int = 64
    warp_tokens: int = 64
    warpgroups: bool = False
    """Whether tiles are multiplied by warpgroups, as Hopper's Tensor Cores do it fastest."""
    few_tokens: int = 0
    """Rows of activations for which each weight is read only once, on Tensor Cores."""
    tensor_attention: bool = False
    """Whether rows of a sequence attend on Tensor Cores, where the KV cache is float16."""
    persistent: bool = False
    """Whether a step of one token is one kernel that waits across the grid."""
    copies: bool = False
    """Whether it has a copy of its code for each product of a layer, where layers are of few forms,
    which compilers for CPUs take minutes for; otherwise its products are in a table."""
    stamped: bool = False
    """Whether its groups wait for numbers, not for each other, where a model allows that."""
    phase_times: bool = False
    """Whether it notes when every phase began and ended; see ``Stage.phase_times``."""
    nvidia: bool = False
    """Whether kernels are lowered to PTX."""
    integer_dot: bool = False
    optimise: bool = True
    """Whether the driver's compiler optimises; PoCL's (3.0, LLVM 14) garbles private arrays in
    loops with barriers, such as those of the persistent kernel."""

    @property
    def tensor_group(self) -> int:
        """Work-items of a group that multiplies tiles on Tensor Cores."""
        warps = (self.tensor_rows // self.warp_rows) * (self.tensor_tokens // self.warp_tokens)
        return warps * LANES


def default_tuning(
    device: Device, config: ModelConfig, kinds: Collection[TensorType] = ()
) -> Tuning:
    """Return the sizes for a device and a model, as measured on a few of both.

    ``kinds`` are the types in which its matrices are held.
    """
    found = features(device)
    if Feature.INLINE_PTX in found:
        # Routers to experts are F32, and too small to matter.
        large = {*kinds} - {TensorType.F32} if config.experts else kinds
        return Tuning(
            group=512,
            groups=device.compute_units,
            loads=_loads(config, large),
            splits=_splits(device, config),
            attention_rows=attention_rows(device, config),
            tensor_cores=Feature.TENSOR_CORES in found,
            warpgroups=Feature.WARPGROUPS in found,
            few_tokens=FEW_COUNTS[-1] if Feature.TENSOR_CORES in found else 0,
            tensor_attention=Feature.TENSOR_CORES in found and _has_room_for_blocks(config),
            persistent=Feature.GRID_BARRIER in found,
            copies=True,
            stamped=True,
            nvidia=True,
        )
    # On a CPU a work-item is a turn of a loop: large groups only take longer to compile.
    group = min(LANES if device.is_pocl else 128, device.max_group // LANES * LANES)
    if group < LANES:
        raise DeviceError(
            f"OpenCL device {device} runs work-groups of {device.max_group} work-items, but the "
            f"kernels need {LANES}; choose another device, or run without one: --backend cpu"
        )
    return Tuning(
        group=group,
        groups=8 * device.compute_units,
        loads=1 if device.is_pocl else 4,
        heads=heads_at_once(config),
        attention_rows=attention_rows(device, config),
    )


def _splits(device: Device, config: ModelConfig) -> int:
    """Return into how many parts single rows' attention cuts positions: a group a head and part."""
    return min(MAX_SPLITS, max(1, device.compute_units // config.n_heads))


def _loads(config: ModelConfig, kinds: Collection[TensorType]) -> int:
    """Return a GPU's loads: about as many as pay, so that few of a row's last task find nothing."""
    if not kinds:
        return 4
    most = 8 if WIDE_UNITS.issuperset(kinds) else 4
    units = min(-(-config.dim // LAYOUTS[kind].unit_cols // LANES) for kind in kinds)

    def value(loads: int) -> float:  # loads of a row that find a unit, less if few are on their way
        return units / round_up(units, loads) * math.sqrt(min(1, loads / most))

    return max(range(1, most + 2), key=value)


def fills_registers(tuning: Tuning, kinds: Iterable[TensorType]) -> bool:
    """Whether a work-item's loads leave no registers for what all layers have in common.

    On an H200 a step of the 7B shape took 1.369 ms in Q4_0 (20 words) with that held in registers,
    1.411 with it worked out anew for each product; F16 (32) 3.459 and 3.351, Q8_0 (40) 2.083 and
    2.063.
    """
    return tuning.loads * max(map(_load_words, kinds)) > HELD_WORDS


def _load_words(kind: TensorType) -> int:
    """Return the registers that a load takes, with what stands beside it."""
    layout = LAYOUTS[kind]
    return 11 if layout.planes else 4 + layout.quantised


def attention_rows(device: Device, config: ModelConfig) -> int:
    """Return the most rows that a tile of attention has room for; 0 where none fits."""
    if device.max_group < ATTENTION_GROUP:
        return 0
    head_pitch = round_up(config.head_dim, BLOCK) + ATTENTION_PAD  # Q8_0 pads heads so far
    room = (min(device.local_memory, MAX_LOCAL) - RESERVED_LOCAL) // FLOAT - ATTENTION_GROUP
    for rows in (32, 16):
        if (rows + LANES) * head_pitch + rows * (LANES + ATTENTION_PAD + 2) <= room:
            return rows
    return 0


def _has_room_for_blocks(config: ModelConfig) -> bool:
    """Whether two blocks of the cache of a head fit into local memory, as float16."""
    units = -(-config.head_dim // 8)
    return 2 * LANES * UNIT_BYTES * (units + (units | 1)) <= MAX_LOCAL


def tensor_attention(tuning: Tuning, kv_type: TensorType) -> bool:
    """Whether rows of a sequence attend on Tensor Cores, given what the cache holds."""
    return tuning.tensor_attention and kv_type is TensorType.F16


def heads_at_once(config: ModelConfig) -> int:
    """Return how many heads that share keys a team attends from at a time."""
    shared = config.n_heads // config.n_kv_heads
    return next(n for n in range(MAX_HEADS_AT_ONCE, 0, -1) if shared % n == 0)


def top_part(vocab_size: int) -> int:
    """Return the logits of a part of a row, in about ``TOP_PARTS`` of which the greatest lie."""
    return round_up(-(-vocab_size // TOP_PARTS), LANES)


def norm_stride(config: ModelConfig) -> int:
    """Return the floats from a norm's weights to the next; a part of a buffer can begin there."""
    return round_up(config.dim, ALIGNMENT // FLOAT)
