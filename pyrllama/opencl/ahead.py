"""Steps that a device begins before anybody asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrllama.core import BLOCK_TOKENS
from pyrllama.opencl.choice import FIRST

if TYPE_CHECKING:
    from pyrllama.core import Batch, Chunk
    from pyrllama.opencl.outputs import Chosen
    from pyrllama.opencl.transfers import Transfers


@dataclass(frozen=True, slots=True)
class _Step:
    """A step under way: behind which chunk, what that gave, and what comes of itself."""

    behind: Chunk
    before: Chosen
    chosen: Chosen


class Ahead:
    """The step behind one whose greatest logit alone is wanted.

    Most likely that one's token is fed back.  The device knows it first, so it need not stand
    still while the host reads it, emits it and makes the next batch: ``kernels/choice.cl`` makes
    that batch on the device.  If something else is asked for, the step was for nothing: what it
    put into the KV cache stands behind its text's end, in a block that this text alone writes.
    """

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._step: _Step | None = None

    def take(self, batch: Batch, k: int) -> Chosen | None:
        """Return what the device is computing already, if it is this batch, and give it up."""
        if self._step is None or k != 1 or not _is_one_token(batch):
            return None
        (follower,), chunk = batch.chunks, self._step.behind
        expected = chunk.start + 1, chunk.blocks, (int(self._step.before.words[0, FIRST]),)
        if (follower.start, follower.blocks, follower.tokens) != expected:
            return None
        chosen, self._step = self._step.chosen, None
        return chosen

    def put(self, batch: Batch, before: Chosen, chosen: Chosen) -> None:
        """Note the step that was enqueued behind a batch, whose own result is ``before``."""
        self._step = _Step(batch.chunks[0], before, chosen)

    def drop(self) -> None:
        """Give up the step that nobody asked for."""
        if self._step is not None:
            self._transfers.forget(self._step.chosen.event)
            self._step = None


def may_follow(batch: Batch, k: int, max_seq_len: int) -> bool:
    """Whether the step behind a batch can be enqueued: it takes no block more."""
    follower = batch.chunks[0].start + 1
    return (
        k == 1 and _is_one_token(batch) and follower % BLOCK_TOKENS != 0 and follower < max_seq_len
    )


def _is_one_token(batch: Batch) -> bool:
    return batch.n_tokens == 1 and batch.n_outputs == 1
