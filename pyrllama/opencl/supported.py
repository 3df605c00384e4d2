"""Which models the OpenCL backend cannot run yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from pyrllama.model_config import ModelConfig


MAX_HEAD_DIM = 256
"""A work-item has eight numbers of a head, and a team of 32 has a head at least."""


def check_supported(config: ModelConfig) -> None:
    """Raise ``BackendError``, naming it, for what a model has that no kernel here computes."""
    if config.head_dim > MAX_HEAD_DIM:
        raise BackendError(
            f"the OpenCL backend does not run heads of more than {MAX_HEAD_DIM} numbers yet: use "
            f"--backend cpu"
        )
