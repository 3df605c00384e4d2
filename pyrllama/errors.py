"""One named exception for each way in which a user can be wrong.

Every message names the cause, the place (file, offset, tensor or setting) and the mend.  The
command line prints it without a traceback and exits with status 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os


class RllamaError(Exception):
    """Base of every error that a user can mend."""


class SettingError(RllamaError, ValueError):
    """A setting is outside its range or contradicts another one."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name} is {value!r}, but it must be {allowed}")
        self.name = name


class CheckpointError(RllamaError):
    """A checkpoint cannot be read; ``path`` is the file or folder that is to blame."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class ModelNotFoundError(CheckpointError):
    """There is no file or folder at the path, or no weights in it."""


class UnknownFormatError(CheckpointError):
    """The file is none of the checkpoint formats that are read."""


class CorruptFileError(CheckpointError):
    """The file is truncated, inconsistent or hostile."""


class UnsafePickleError(CorruptFileError):
    """The pickle asks for something other than tensors; nothing of it was run."""


class UnsupportedTypeError(CheckpointError):
    """A tensor is stored in a type that cannot be run yet."""


class UnsupportedModelError(CheckpointError):
    """The architecture, or a feature of it, is not one that is implemented."""


class TensorError(CheckpointError):
    """A tensor that the model needs is missing or has another shape than the model says."""


class TokenizerError(RllamaError):
    """A tokenizer is missing, broken, or does not belong to the model."""


class PromptError(RllamaError):
    """The prompt cannot be used: not UTF-8, missing, or given twice."""


class PromptTooLongError(PromptError):
    """The prompt does not fit into the context; it is never cut silently."""

    def __init__(self, n_tokens: int, max_seq_len: int) -> None:
        super().__init__(
            f"the prompt has {n_tokens} tokens, but the context holds {max_seq_len}, and at least "
            f"one must be left for the answer; shorten the prompt or raise --max-seq-len"
        )
        self.n_tokens = n_tokens
        self.max_seq_len = max_seq_len


class CacheFullError(RllamaError):
    """The KV cache has no free block for the requests that are running."""


class BackendError(RllamaError):
    """The kernels cannot run on this machine as asked."""


class DeviceError(BackendError):
    """An OpenCL device is not there, cannot do what is asked of it, or has failed."""


class NotEnoughMemoryError(RllamaError):
    """The model would need more memory than is free; nothing of it was loaded."""


class HubError(RllamaError):
    """A model cannot be had from the Hugging Face hub; the subclasses say why."""


class HubReferenceError(HubError):
    """What was asked of the hub is not ``OWNER/REPO[@REVISION][:FILE or quantisation]``."""


class HubNotFoundError(HubError):
    """There is no such repository, revision or file, or it is hidden from strangers."""


class HubAccessError(HubError):
    """The repository wants conditions to be accepted, or another token."""


class HubConnectionError(HubError):
    """The hub cannot be reached, or must not be, and the files are not in the cache."""


class HubChoiceError(HubError):
    """It is not clear which files of a repository are meant; the message names them."""


class HistoryError(RllamaError):
    """A history of benchmarks, or a plot of it, cannot be read or written; lines count from 1."""

    def __init__(self, path: str | os.PathLike[str], problem: str, line: int | None = None) -> None:
        super().__init__(f"{path}: {problem}" if line is None else f"{path}:{line}: {problem}")
        self.path = path
        self.line = line


class ComparisonError(RllamaError):
    """Two models, or a model and saved logits, have no predictions that can be compared."""


class MissingPackageError(RllamaError):
    """What is asked for needs a package that is not installed; the message says which."""
