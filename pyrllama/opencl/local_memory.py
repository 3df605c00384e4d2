"""How a work-group's local memory is shared out: activations, and what joins their products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrllama.opencl.layout import BLOCK, FLOAT, LANES, LAYOUTS, UNIT_BYTES, round_up

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.layout import Extent
    from pyrllama.opencl.tuning import Tuning
    from pyrllama.tensors import TensorType

BLOCK_BYTES = BLOCK + 2 * FLOAT
"""Of a block of quantised activations in local memory: its int8, its scale and its sum."""
MAX_LOCAL = 48 * 1024
"""What every recent GPU lets a work-group have."""
RESERVED_LOCAL = 512
PHASE_MARKS = 3
"""Times that are noted within a phase; see ``kernels/shares.cl``."""


@dataclass(frozen=True, slots=True)
class LocalMemory:
    """How a product's activations share local memory: columns that it holds at a time."""

    segment_floats: int
    segment_blocks: int

    def holds_row(self, extent: Extent) -> bool:
        """Whether a whole row of what a matrix multiplies is there at a time."""
        quantised = LAYOUTS[extent.kind].quantised
        return extent.cols <= (self.segment_blocks * BLOCK if quantised else self.segment_floats)

    def n_bytes(self, kinds: Iterable[TensorType]) -> int:
        """Bytes for matrices of any of these types."""
        blocks = round_up(self.segment_blocks * BLOCK_BYTES, UNIT_BYTES)
        return max(
            blocks if LAYOUTS[kind].quantised else self.segment_floats * FLOAT for kind in kinds
        )


def scratch_floats(tuning: Tuning, config: ModelConfig) -> int:
    """Return the floats in which a group joins its sums; see ``kernels/shares.cl``."""
    teams = tuning.group // LANES
    kept, results = (1, tuning.group) if tuning.nvidia else (LANES, LANES)
    marks = PHASE_MARKS if tuning.phase_times else 0
    sums = max(2 * results * kept, tuning.splits * config.n_heads)
    return sums + teams * (kept + 1) + marks


def local_memory(device: Device, config: ModelConfig, tuning: Tuning) -> LocalMemory:
    """Cut rows of activations into segments that fit into a work-group's local memory."""
    longest = longest_row(config)
    room = (
        min(device.local_memory, MAX_LOCAL)
        - scratch_floats(tuning, config) * FLOAT
        - RESERVED_LOCAL
    )
    floats = min(longest, room // FLOAT // BLOCK * BLOCK)
    # The blocks of some types are eight of these long, and segments hold whole ones.
    blocks = min(longest // BLOCK, room // BLOCK_BYTES // 8 * 8)
    return LocalMemory(floats, blocks)


def longest_row(config: ModelConfig) -> int:
    """Return the columns of the widest matrix, padded."""
    return round_up(max(config.dim, config.q_dim, config.ffn_dim), BLOCK)
