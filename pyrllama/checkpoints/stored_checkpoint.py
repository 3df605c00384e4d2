"""What the readers of Meta's and Hugging Face's folders share: tensors that have sources."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyrllama.checkpoints.base import Checkpoint
from pyrllama.errors import ModelNotFoundError, TensorError, UnsupportedTypeError
from pyrllama.models.llama import check_tensors
from pyrllama.tensors import Tensor, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pyrllama.checkpoints.stored import Source


class StoredCheckpoint(Checkpoint):
    """A checkpoint whose tensors have sources; a subclass finds them in ``_open``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = ExitStack()
        self._sources: Mapping[str, Source] = {}
        try:
            self._open()
        except OSError as error:
            self.close()
            raise ModelNotFoundError(path, f"cannot be read: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _open(self) -> None:
        """Set ``format``, ``config`` and ``metadata``, and call ``_set_sources``."""

    def _set_sources(self, sources: Mapping[str, Source]) -> None:
        """Take sources by GGUF name and check them against the config."""
        self._sources = sources
        self.tensors = {name: self._info(name, source) for name, source in sources.items()}
        check_tensors(self.path, self.config, self.tensors)

    def _info(self, name: str, source: Source) -> TensorInfo:
        if source.type is None:
            raise UnsupportedTypeError(
                self.path,
                f"the tensor {name} is stored as {source.stored_as}, but weights can be F32, F16 "
                f"or BF16; convert it to one of them",
            )
        return TensorInfo(name, source.shape, source.type)

    def read(self, name: str) -> Tensor:
        """Return a tensor's bytes."""
        return Tensor(self._info(name, self._source(name)), self._source(name).rows())

    def release(self, name: str) -> None:
        """Give a tensor's pages back to the system."""
        self._source(name).release()

    def close(self) -> None:
        """Unmap the files."""
        self._files.close()

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            raise TensorError(self.path, f"there is no tensor named {name}")
        return self._sources[name]
