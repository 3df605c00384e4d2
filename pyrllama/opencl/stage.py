"""A run of layers on one device: its kernels, its launches, and what of them comes back.

All kernels are made and their arguments set when the stage is; a step writes the batch into one
buffer, enqueues the launches, and waits only for what it returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.batch_limits import BatchLimits
from pyrllama.opencl.ahead import Ahead, may_follow
from pyrllama.opencl.batch import BatchWords, word_count
from pyrllama.opencl.choice import can_choose
from pyrllama.opencl.defines import defines
from pyrllama.opencl.device import device_errors, pyopencl
from pyrllama.opencl.in_turn import in_turn, one_by_one
from pyrllama.opencl.layout import BLOCK, round_up
from pyrllama.opencl.local_memory import PHASE_MARKS, local_memory
from pyrllama.opencl.outputs import Outputs
from pyrllama.opencl.persistent import can_persist, can_stamp, n_barriers
from pyrllama.opencl.persistent_source import can_copy, persistent_defines, persistent_source
from pyrllama.opencl.program import OPTIONS, UNOPTIMISED, Program, model_source
from pyrllama.opencl.stage_memory import StageMemory
from pyrllama.opencl.steps import Steps
from pyrllama.opencl.transfers import Transfers
from pyrllama.opencl.tuning import default_tuning, tensor_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.core import Batch, LogitRow
    from pyrllama.opencl.device import Device
    from pyrllama.opencl.parts import Part, Sizes
    from pyrllama.opencl.tuning import Tuning
    from pyrllama.opencl.weights import Matrix
    from pyrllama.tensors import TensorType


class Stage:
    """Layers on a device; ``forward`` takes and gives hidden states or tokens and logits."""

    def __init__(
        self,
        device: Device,
        checkpoint: Checkpoint,
        part: Part,
        sizes: Sizes,
        *,
        wanted: TensorType | None,
        progress: Callable[[int], None],
        tuning: Tuning | None = None,
    ) -> None:
        cl = pyopencl()
        self.device, self.part = device, part
        self.config = config = checkpoint.config
        self._sizes = sizes
        with device_errors(device, "loading the model"):
            self._context = cl.Context([device.handle])
            self._queue = cl.CommandQueue(self._context)
            self._memory = StageMemory(
                device,
                self._context,
                self._queue,
                checkpoint,
                part,
                sizes,
                wanted=wanted,
                progress=progress,
            )
            self._transfers = Transfers(self._context, self._queue)
            n_words = word_count(sizes.n_blocks, sizes.max_tokens)
            words = self._transfers.pinned((n_words,), np.int32)
            self._outputs = Outputs(self, self._transfers)
            self._ahead = Ahead(self._transfers)
            rows = 0 if part.embeds and part.ends else sizes.max_tokens
            states = rows, round_up(config.dim, BLOCK)
            self._states = self._transfers.pinned(states, np.float32)
        limits = BatchLimits(config.vocab_size, sizes.n_blocks, sizes.max_tokens, sizes.max_seq_len)
        self.batch = BatchWords(limits, words)
        self.tune(tuning or default_tuning(device, config, self._memory.kinds))

    def tune(self, tuning: Tuning) -> None:
        """Build the kernels, anew if need be, in other sizes; the cache becomes empty."""
        self.tuning = tuning
        self.local_memory = local_memory(self.device, self.config, tuning)
        matrices, n_buffers = self._memory.matrices, len(self.weight_buffers)
        self.persists = tuning.persistent and can_persist(
            matrices, self.part, n_buffers, self.local_memory
        )
        self._ahead.drop()
        with device_errors(self.device, "building the kernels"):
            self._memory.allocate(tuning, self.batch.n_bytes, persists=self.persists)
            options = OPTIONS if tuning.optimise else (*OPTIONS, UNOPTIMISED)
            program = Program(self.device, self._context, self._source(), options)
            self._steps = Steps(self, program)
            self._queue.finish()

    def _source(self) -> str:
        kinds, memory, sizes = self._memory.kinds, self.local_memory, self._sizes
        words = defines(
            self.tuning,
            self.config,
            memory,
            kv_type=sizes.kv_type,
            max_tokens=sizes.max_tokens,
            max_seq_len=sizes.max_seq_len,
        )
        if not self.persists:
            return model_source(words, kinds)
        tuning, matrices = self.tuning, self._memory.matrices
        copies = tuning.copies and can_copy(matrices, self.part)
        stamped = can_stamp(matrices, self.part, self.config, tuning.groups)
        words |= persistent_defines(tuning, kinds, copies=copies, stamped=stamped)
        after = persistent_source(
            matrices,
            self.config,
            self.part,
            n_buffers=len(self.weight_buffers),
            copies=copies,
            activation_bytes=memory.n_bytes(kinds),
        )
        return model_source(words, kinds, after)

    @property
    def attends_on_tensor_cores(self) -> bool:
        """Whether rows of a prompt attend on Tensor Cores."""
        return tensor_attention(self.tuning, self._sizes.kv_type)

    # --- what it holds ------------------------------------------------------------------------

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices."""
        return self._memory.weight_bytes

    @property
    def weight_buffers(self) -> list[Any]:
        """The large buffers that hold the matrices."""
        return self._memory.weight_buffers

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of this stage's part of the KV cache."""
        return self._memory.block_bytes

    def matrices(self, group: str) -> list[Matrix]:
        """Return the matrices of a group, those of one type joined."""
        return self._memory.matrices[group]

    def buffer(self, name: str) -> Any:
        """Return a buffer by name."""
        return self._memory.buffer(name)

    def norm(self, index: int) -> Any:
        """Return the weights of a norm: ``2 * layer`` or the one after, or the last."""
        return self._memory.norm(index)

    # --- running ------------------------------------------------------------------------------

    def forward(
        self, batch: Batch, hidden: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Run a batch: return ``(n_outputs, vocab)`` logits or ``(n_tokens, dim)`` hidden states.

        ``hidden`` are what the stage before gave.  Raises ``BackendError`` for a batch that does
        not fit, ``DeviceError`` when the device fails.
        """
        if in_turn(self, batch):
            return np.concatenate([self.forward(*one) for one in one_by_one(batch, hidden)])
        single = batch.n_tokens == 1 and self.persists
        with device_errors(self.device, "running the model"):
            self._start(batch, hidden)
            if self.part.ends:
                return self._outputs.logits(batch.n_outputs, single=single)
            return self._outputs.states(self._states[: batch.n_tokens], single=single)

    def top_logits(
        self, batch: Batch, k: int, hidden: NDArray[np.float32] | None = None
    ) -> Sequence[LogitRow]:
        """Run a batch as ``forward`` does; return the ``k`` greatest logits of rows, or whole rows.

        The last stage of a model does.
        """
        if in_turn(self, batch):  # the step behind one of them is not the next one
            singles = one_by_one(batch, hidden)
            return [self._top_logits(*one, k, ahead=False)[0] for one in singles]
        return self._top_logits(batch, hidden, k, ahead=True)

    def _top_logits(
        self, batch: Batch, hidden: NDArray[np.float32] | None, k: int, *, ahead: bool
    ) -> Sequence[LogitRow]:
        """Run a batch for ``top_logits``; with ``ahead`` the step behind it may begin at once."""
        if not can_choose(self.config, self.tuning, k, batch.n_outputs):
            return list(self.forward(batch, hidden))
        with device_errors(self.device, "running the model"):
            chosen = self._ahead.take(batch, k)
            goes_on = ahead and self.part.embeds and may_follow(batch, k, self._sizes.max_seq_len)
            if chosen is None:
                step = self._start(batch, hidden, top=k, goes_on=goes_on)
                chosen = self._outputs.ask_top(batch.n_outputs, step)
            if goes_on:
                step = self._steps.enqueue(self._queue, batch, top=k)
                follower = self._outputs.ask_top(1, step, slot=1 - chosen.slot)
                self._ahead.put(batch, chosen, follower)
            rows = self._outputs.top(chosen, k)
            if goes_on and rows == [None]:  # by now its logits may be those of the step behind it
                return list(self.forward(batch))
            return [row or self._outputs.row(i) for i, row in enumerate(rows)]

    def _start(
        self,
        batch: Batch,
        hidden: NDArray[np.float32] | None,
        top: int = 0,
        *,
        goes_on: bool = False,
    ) -> Any:
        """Enqueue a step and what it reads; return its event."""
        self._ahead.drop()
        words = self.batch.fill(batch, top, goes_on=goes_on)
        self._transfers.send(self.buffer("batch"), words)
        if hidden is not None:
            states = self._states[: batch.n_tokens]
            states[:, : self.config.dim] = hidden
            self._transfers.send(self.buffer("x"), states)
        return self._steps.enqueue(self._queue, batch, top=top)

    def repeat(self, batch: Batch, times: int, top: int = 0) -> None:
        """Run the same batch many times without waiting between, to be timed."""
        self._ahead.drop()
        with device_errors(self.device, "running the model"):
            self._transfers.send(self.buffer("batch"), self.batch.fill(batch, top))
            for _ in range(times):
                self._steps.enqueue(self._queue, batch, top=top)
            self._transfers.wait()

    def timed(self, batch: Batch) -> list[tuple[str, float]]:
        """Run a batch and return the name of every launch and the seconds it took."""
        self._ahead.drop()
        cl, words = pyopencl(), self.batch.fill(batch)
        with device_errors(self.device, "timing the model"):
            profiling = cl.command_queue_properties.PROFILING_ENABLE
            queue = cl.CommandQueue(self._context, properties=profiling)
            cl.enqueue_copy(queue, self.buffer("batch"), words)
            events = [
                (launch.kernel.function_name, launch.enqueue(queue, times))
                for launch, times in self._steps.launches(batch, top=0)
            ]
            queue.finish()
            return [(name, 1e-9 * (e.profile.end - e.profile.start)) for name, e in events]

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of a block of this stage's part of the KV cache."""
        out = np.empty(self.block_bytes, np.uint8)
        with device_errors(self.device, "reading the KV cache"):
            offset = block * self.block_bytes
            pyopencl().enqueue_copy(self._queue, out, self.buffer("cache"), src_offset=offset)
        return out

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block of this stage's part of the KV cache with what ``read_block`` gave."""
        self._ahead.drop()  # it attends to what the cache held before
        with device_errors(self.device, "writing the KV cache"):
            offset = block * self.block_bytes
            pyopencl().enqueue_copy(self._queue, self.buffer("cache"), data, dst_offset=offset)

    def phase_times(self) -> NDArray[np.int32]:
        """Return when groups came to the barriers of the last step of one token, and left them.

        ``(groups, barriers + 1, marks + 2)`` nanoseconds, modulo 2^32: of every phase first its
        marks (``kernels/shares.cl``); the last phase, which has no barrier, is not left.
        """
        shape = self.tuning.groups, n_barriers(self.part) + 1, PHASE_MARKS + 2
        times = np.empty(shape, np.int32)
        with device_errors(self.device, "reading the times of phases"):
            pyopencl().enqueue_copy(self._queue, times, self.buffer("times"))
        return times

    def close(self) -> None:
        """Free the device's memory now, not when Python notices."""
        self._transfers.close()
        del self._steps
        self._memory.close()
