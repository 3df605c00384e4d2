"""Any checkpoint that opens as a GGUF file of a named quantisation, with the errors it costs.

Tensors pass through in slices: a slice is read, dequantised, fitted by all threads, compared
with what it was, and written, so that a model takes the memory of one tensor at most.
"""

from __future__ import annotations

import dataclasses
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyrllama.checkpoints.gguf import GgufCheckpoint
from pyrllama.checkpoints.gguf_rows import read_for_gguf
from pyrllama.checkpoints.gguf_writer import PendingTensor, stored_bytes, write_gguf
from pyrllama.convert import QUANTIZATION_VERSION, model_metadata, stretched_rope_tensor
from pyrllama.errors import CorruptFileError, SettingError
from pyrllama.mixtures import Mixture, tensor_types
from pyrllama.models.llama import expected_tensors
from pyrllama.quants import dequantize, quantize_fitted
from pyrllama.tensors import TensorType
from pyrllama.tokenizer.to_gguf import PREFIX, chat_template, vocabulary_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.importance import Importance
    from pyrllama.tensors import TensorInfo

    Progress = Callable[[str, int, int], None]
    """Called with a tensor's name, the numbers done and the numbers in all."""
    _Run = Callable[[Callable[["_Slice"], "_Rows"], Sequence["_Slice"]], Iterator["_Rows"]]

TEMPLATE = "tokenizer.chat_template"
_TASK_NUMBERS = 1 << 20
"""Numbers that a thread takes at once."""
_FLOATS = frozenset({TensorType.F32, TensorType.F16, TensorType.BF16})
_OF_THE_SOURCE = ("split.", "quantize.imatrix.", "general.alignment")
"""Keys of a GGUF file that say something of that file alone."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the file that was written."""

    name: str
    shape: tuple[int, ...]
    source: TensorType
    type: TensorType
    n_bytes: int
    relative_error: float
    """Root of the squared errors' sum over that of the squares: 0 where nothing was rounded."""
    importance: bool
    """Whether errors were weighed by column."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What was written: the tensors in the order of the file."""

    mixture: Mixture
    tensors: tuple[StoredTensor, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a number takes on average."""
        return 8 * self.n_bytes / sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def requantised(self) -> tuple[TensorType, ...]:
        """Quantised types that tensors had before and lost: their errors add up."""
        types = {t.source for t in self.tensors if t.source not in {t.type, *_FLOATS}}
        return tuple(sorted(types))


def quantize_checkpoint(
    checkpoint: Checkpoint,
    tokenizer: Path,
    path: Path,
    mixture: Mixture,
    *,
    importance: Importance | None = None,
    pure: bool = False,
    metadata: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Quantisation:
    """Write a checkpoint and its tokenizer as a GGUF file of a mixture of types.

    ``tokenizer`` may be the GGUF file itself, whose keys are all taken over.  ``importance``
    weighs the errors of columns, ``pure`` gives every matrix the mixture's main type,
    ``metadata`` adds keys or replaces them, ``threads`` is the machine's number without it.

    Raises ``SettingError`` for a path that is the checkpoint's own or a type that cannot hold
    a tensor's numbers, ``CorruptFileError`` for numbers that are not finite, ``TensorError``
    for the importance of another model, and what reading and writing raise.
    """
    if path.exists() and path.samefile(checkpoint.path):
        raise SettingError("the file to write", str(path), "another one than the source")
    names = [name for name in expected_tensors(checkpoint.config) if name in checkpoint.tensors]
    infos = {name: checkpoint.tensors[name] for name in names}
    types = tensor_types(
        checkpoint.config, infos, mixture, has_importance=importance is not None, pure=pure
    )
    keys = _metadata(checkpoint, tokenizer, mixture)
    keys |= dict(importance.metadata if importance else {}) | dict(metadata or {})
    total = sum(math.prod(info.shape) for info in infos.values())
    tracker = _Tracker(total, progress)
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            _Job(
                checkpoint,
                dataclasses.replace(info, type=types[name]),
                importance.of(info) if importance else None,
                partial(_in_order, pool, 2 * workers),
                tracker,
            )
            for name, info in infos.items()
        ]
        tensors = [PendingTensor(job.target, job.parts) for job in jobs]
        write_gguf(path, keys, tensors + stretched_rope_tensor(checkpoint))
    return Quantisation(mixture, tuple(job.report() for job in jobs))


class _Tracker:
    """Counts the numbers done for whoever watches."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def add(self, name: str, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(name, self._done, self._total)


class _Slice(NamedTuple):
    """Rows of one matrix that a thread takes at once, and the importance of their columns."""

    rows: NDArray[np.uint8]
    columns: NDArray[np.float32] | None


class _Rows(NamedTuple):
    """Rows that one thread has done: their bytes, and two sums over their numbers."""

    stored: NDArray[np.uint8]
    squared_error: float
    squares: float


@dataclass(slots=True)
class _Job:
    """A tensor on its way from a checkpoint into the file."""

    checkpoint: Checkpoint
    target: TensorInfo
    columns: NDArray[np.float32] | None
    run: _Run
    tracker: _Tracker
    squared_error: float = 0.0
    squares: float = 0.0

    def parts(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the stored bytes, as many rows at once as the threads have tasks for."""
        tensor = read_for_gguf(self.checkpoint, self.target.name)
        cols = self.target.shape[-1]
        slices = list(self._slices(tensor.data))
        if tensor.info.type is self.target.type:
            yield tensor.data
            self.tracker.add(self.target.name, math.prod(self.target.shape))
        else:
            convert = partial(self._convert, tensor.info.type)
            for rows in self.run(convert, slices):
                self.squared_error += rows.squared_error
                self.squares += rows.squares
                yield rows.stored
                self.tracker.add(self.target.name, len(rows.stored) * cols)
        del tensor, slices  # they may be a copy: before the next tensor is read
        self.checkpoint.release(self.target.name)

    def _slices(self, data: NDArray[np.uint8]) -> Iterator[_Slice]:
        """Yield the rows of the tensor in order, none of two experts together."""
        *experts, cols = self.target.shape[:-2] + self.target.shape[-1:]
        n_rows = len(data) // math.prod(experts)
        at_once = max(1, _TASK_NUMBERS // cols)
        columns = None if self.columns is None else self.columns.reshape(-1, cols)
        for expert, first in enumerate(range(0, len(data), n_rows)):
            of_expert = None if columns is None else columns[expert]
            for start in range(first, first + n_rows, at_once):
                yield _Slice(data[start : min(start + at_once, first + n_rows)], of_expert)

    def _convert(self, source: TensorType, part: _Slice) -> _Rows:
        """Return rows in the target's type, and by how much they differ from what they were."""
        cols = self.target.shape[-1]
        x = dequantize(source, part.rows, cols)
        if not np.isfinite(x).all():
            raise CorruptFileError(
                self.checkpoint.path,
                f"the tensor {self.target.name} has numbers that are not finite, which no "
                f"quantisation can hold; get the checkpoint again",
            )
        stored = quantize_fitted(self.target.type, x, part.columns)
        squares = float(np.vdot(x, x))
        x -= dequantize(self.target.type, stored, cols)
        squared_error = float(np.vdot(x, x))
        if not math.isfinite(squared_error):
            raise SettingError(
                "the type",
                self.target.type.name,
                f"BF16 or F32: {self.target.name} has numbers that are too large for it",
            )
        return _Rows(stored, squared_error, squares)

    def report(self) -> StoredTensor:
        """Return what became of the tensor."""
        return StoredTensor(
            name=self.target.name,
            shape=self.target.shape,
            source=self.checkpoint.tensors[self.target.name].type,
            type=self.target.type,
            n_bytes=stored_bytes(self.target),
            relative_error=math.sqrt(self.squared_error / self.squares) if self.squares else 0.0,
            importance=self.columns is not None,
        )


def _in_order(
    pool: ThreadPoolExecutor,
    ahead: int,
    convert: Callable[[_Slice], _Rows],
    slices: Sequence[_Slice],
) -> Iterator[_Rows]:
    """Yield the results in the order of the slices, with only ``ahead`` of them under way."""
    waiting = [pool.submit(convert, part) for part in slices[:ahead]]
    try:
        for part in slices[ahead:]:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(convert, part))
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()


def _metadata(checkpoint: Checkpoint, tokenizer: Path, mixture: Mixture) -> dict[str, Any]:
    """Return the keys of the new file: a GGUF file's own ones, or those that make a model."""
    written = {
        "general.file_type": mixture.code,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    vocabulary = vocabulary_metadata(tokenizer, checkpoint.config.vocab_size)
    if TEMPLATE not in vocabulary and (template := chat_template(tokenizer)) is not None:
        vocabulary[TEMPLATE] = template
    if not isinstance(checkpoint, GgufCheckpoint):
        described = model_metadata(checkpoint.config, mixture.code)
        return {**described, **_title(checkpoint), **written, **vocabulary}
    kept = {
        key: value.copy() if isinstance(value, np.ndarray) else value
        for key, value in checkpoint.metadata.items()
        if not key.startswith((*_OF_THE_SOURCE, PREFIX))
    }
    return {**kept, **written, **vocabulary}


def _title(checkpoint: Checkpoint) -> dict[str, str]:
    path = checkpoint.path.resolve()
    name = path.name if path.is_dir() else path.stem
    return {"general.type": "model", "general.name": name} if name else {"general.type": "model"}
