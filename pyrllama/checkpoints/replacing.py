"""Writing a file so that nobody ever meets half of it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyrllama.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when it is whole, or else vanishes."""
    growing = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with growing.open("wb") as file:
            yield file
        growing.replace(path)
    except OSError as error:
        raise CheckpointError(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        growing.unlink(missing_ok=True)
