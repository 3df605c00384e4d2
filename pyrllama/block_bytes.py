"""Blocks of the KV cache as bytes: models that give and take them, and stores that keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


@runtime_checkable
class BlockMemory(Protocol):
    """A model whose blocks can be had as bytes: to copy them, and to keep them on disk."""

    @property
    def block_format(self) -> str | None:
        """All that says how the bytes are to be read; None if a part of the model cannot."""
        ...

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of the bytes of a block of the KV cache, ``(block bytes,)``."""
        ...

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a block with bytes of the same format; ``BackendError`` for another size."""
        ...


def block_memory(model: object) -> BlockMemory | None:
    """Return a model as one whose blocks can be had as bytes, None if it is none."""
    readable = isinstance(model, BlockMemory) and model.block_format is not None
    return model if readable else None  # type: ignore[return-value]


class BlockStore(Protocol):
    """Blocks that outlive the process; ``prompt_store.PromptStore`` keeps them on disk."""

    min_tokens: int
    """Shorter prompts are not worth a look."""

    @property
    def ready(self) -> bool:
        """Whether a block can be saved now without waiting."""
        ...

    def has(self, name: bytes) -> bool:
        """Tell whether the block of a name is there already."""
        ...

    def load(self, name: bytes) -> NDArray[np.uint8] | None:
        """Return the block of a name, None if it is not there."""
        ...

    def used(self, names: Sequence[bytes]) -> None:
        """Note that a text took these blocks, in their order."""
        ...

    def save(self, name: bytes, place: int, data: NDArray[np.uint8]) -> None:
        """Keep the block of a name, which is the one at ``place`` of its text."""
        ...

    def close(self) -> None:
        """End when all is saved."""
        ...
