"""What every checkpoint reader gives: a config, named tensors, metadata, and the bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pyrllama.model_config import ModelConfig
    from pyrllama.tensors import Tensor, TensorInfo


class Checkpoint(ABC):
    """An open checkpoint; the files stay mapped until it is closed.

    Opening reads headers only.  Tensors carry GGUF's names (``blk.0.attn_q.weight``) and the
    order of rows that the model step expects: queries and keys in interleaved RoPE order.
    """

    path: Path
    """The file or folder that was opened."""
    format: str
    """What it is, for people: ``"GGUF 3"``, ``"Meta PyTorch, 2 shards"``."""
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, Any]
    """What else the files say of the model, under their own keys."""

    def sampling_settings(self) -> dict[str, Any]:
        """Return what the files say of how to sample, under the names of ``Sampling``'s fields.

        Nothing of it is checked: whoever uses it does.
        """
        return {}

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Return a tensor's bytes: a view of the mapped file, or joined or permuted in memory.

        Raises ``TensorError`` for a name that the checkpoint lacks, ``CorruptFileError`` for
        bytes that are not there, ``UnsupportedTypeError`` for a type that cannot run yet.
        """

    @abstractmethod
    def release(self, name: str) -> None:
        """Give a tensor's file pages back to the system, so that they do not count as ours.

        Views returned by ``read`` stay valid; touching them reads the file again.
        """

    @abstractmethod
    def close(self) -> None:
        """Unmap the files.  Tensors that were read must not be touched any more."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
