"""The OpenCL backend's model: stages on one device or several, one after the other."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from pyrllama.core import BLOCK_TOKENS, blocks_for
from pyrllama.errors import BackendError, SettingError
from pyrllama.models.llama import OUTPUT
from pyrllama.opencl.experts import unchosen_bytes
from pyrllama.opencl.parts import KV_PADDING, Part, Sizes, block_bytes, stage_stacks
from pyrllama.opencl.stage import Stage
from pyrllama.opencl.supported import check_supported
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.core import Batch, LogitRow
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.tuning import Tuning

MAX_BATCH_TOKENS = 512


class OpenClModel:
    """Layers of a model on OpenCL devices; see ``backend.Model``.

    ``parts`` says which device computes which layers, in their order.  With all layers it is a
    model; the first part may also leave the beginning to another backend, whose hidden states
    ``forward`` is then given.  The KV cache holds ``cache_tokens``, by default ``max_seq_len``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        parts: Sequence[tuple[Device, Part]],
        *,
        type: TensorType | None = None,  # noqa: A002
        kv_type: TensorType = TensorType.F16,
        max_seq_len: int,
        cache_tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        check_kv_type(kv_type)
        check_supported(checkpoint.config)
        self.config = config = checkpoint.config
        self.max_seq_len = max_seq_len
        self.n_blocks = blocks_for(cache_tokens or max_seq_len)
        self.max_batch_tokens = min(MAX_BATCH_TOKENS, max_seq_len)
        self._lock = threading.Lock()
        self._stages: list[Stage] = []
        sizes = Sizes(max_seq_len, self.n_blocks, self.max_batch_tokens, kv_type)
        total = sum(part_bytes(checkpoint, part, type) for _, part in parts)
        loading = _Progress(progress, total)
        try:
            for device, part in parts:
                self._stages.append(
                    Stage(
                        device,
                        checkpoint,
                        part,
                        sizes,
                        wanted=type,
                        progress=loading.add,
                        tuning=tuning,
                    )
                )
        except BaseException:
            self.close()
            raise
        n_layers = sum(len(part.layers) for _, part in parts)
        layers = parts[0][1].layers.start, parts[-1][1].layers.stop - 1
        self.block_format = f"opencl/1 {kv_type.name} layers {layers[0]}-{layers[1]}"
        self._block_bytes = block_bytes(config, n_layers, kv_type)
        self.kv_bytes_per_token = block_bytes(config, n_layers, kv_type) // BLOCK_TOKENS
        self.weight_bytes = sum(stage.weight_bytes for stage in self._stages)
        self.decode_bytes = self.weight_bytes - sum(map(unchosen_bytes, self._stages))
        if parts[0][1].embeds and OUTPUT in checkpoint.tensors:  # one row of it is read
            self.decode_bytes -= self._stages[0].matrices("embedding")[0].extent.n_bytes

    def forward(
        self, batch: Batch, hidden: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Run a batch and return the logits that it asks for, ``(n_outputs, vocab_size)``.

        ``hidden`` are the states, ``(n_tokens, dim)``, before the first layer that is here.
        """
        with self._lock:
            for stage in self._stages:
                hidden = stage.forward(batch, hidden)
            assert hidden is not None  # noqa: S101 - a model has a stage
            return hidden

    def top_logits(
        self, batch: Batch, k: int, hidden: NDArray[np.float32] | None = None
    ) -> Sequence[LogitRow]:
        """Run a batch as ``forward`` does, and return the greatest logits of each row.

        See ``output_rows.TopLogitsModel``.
        """
        with self._lock:
            for stage in self._stages[:-1]:
                hidden = stage.forward(batch, hidden)
            return self._stages[-1].top_logits(batch, k, hidden)

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return the bytes of a block of the KV cache, the stages' parts joined, as a copy.

        ``block_format`` names how they are laid out: keys and values of all layers in order, the
        same wherever the layers are cut into stages.  Raises ``BackendError`` for a number
        outside the cache.
        """
        self._check_block(block)
        with self._lock:
            return np.concatenate([stage.read_block(block) for stage in self._stages])

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block of the KV cache with what ``read_block`` gave for the same format.

        Raises ``BackendError`` for a number outside the cache, or data of another size or type.
        """
        self._check_block(block)
        if data.shape != (self._block_bytes,) or data.dtype != np.uint8:
            raise BackendError(
                f"a cache block of {data.shape} {data.dtype}; this model's have "
                f"{self._block_bytes} bytes ({self.block_format})"
            )
        with self._lock:
            start = 0
            for stage in self._stages:
                end = start + stage.block_bytes
                stage.write_block(block, np.ascontiguousarray(data[start:end]))
                start = end

    def _check_block(self, block: int) -> None:
        if not 0 <= block < self.n_blocks:
            raise BackendError(f"cache block {block}; there are {self.n_blocks}")

    def close(self) -> None:
        """Free the devices' memory; the model must not be used any more."""
        for stage in self._stages:
            stage.close()
        self._stages.clear()


class _Progress:
    """Adds up bytes of several stages for one bar."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self._report, self._done, self._total = report, 0, total
        self.add(0)

    def add(self, n_bytes: int) -> None:
        """Count bytes that are on a device."""
        self._done += n_bytes
        if self._report:
            self._report(self._done, self._total)


def check_kv_type(kv_type: TensorType) -> None:
    """Raise ``SettingError`` for a type that the cache cannot have."""
    if kv_type not in KV_PADDING:
        names = "one of " + ", ".join(known.name for known in KV_PADDING)
        raise SettingError("kv_type", kv_type.name, names)


def part_bytes(checkpoint: Checkpoint, part: Part, wanted: TensorType | None) -> int:
    """Return the bytes of a part's matrices on its device."""
    groups = stage_stacks(checkpoint, part, wanted)
    extents = {stack.names: stack.extent for group in groups.values() for stack in group}
    return sum(extent.n_bytes for extent in extents.values())
