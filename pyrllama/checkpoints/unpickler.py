"""Reads the pickles that ``torch.save`` writes, without importing or calling anything.

Names of classes and functions become inert nodes.  Of calls only those that rebuild a
tensor or an ordered dictionary mean something; any other is an ``UnsafePickleError`` that
names it.

Source of the shapes: ``torch/_utils.py`` and ``torch/serialization.py`` of PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from pyrllama.checkpoints.pickle_machine import Global, PickleMachine
from pyrllama.checkpoints.pickle_opcodes import run
from pyrllama.errors import CorruptFileError

if TYPE_CHECKING:
    from pathlib import Path

MAX_PICKLE_BYTES = 16 << 20
"""A 65B model's pickle has 0.1 MB: the weights lie beside it, not in it."""
MAX_DIMS = 8


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of numbers that lies beside the pickle as the record ``data/<key>``."""

    kind: str
    """PyTorch's class, which is the type of the numbers: ``HalfStorage``."""
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A strided tensor over a storage; offset and strides count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(data: bytes, path: Path) -> object:
    """Return what the pickle describes: plain values, ``Global``, and this module's nodes.

    ``path`` is the file that errors name.  Raises ``UnsafePickleError`` for a call of
    anything but what rebuilds tensors, and ``CorruptFileError`` for a pickle that is
    truncated, senseless or too large.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CorruptFileError(
            path, f"the pickle has {len(data)} bytes, but at most {MAX_PICKLE_BYTES} are read"
        )
    return run(_TorchMachine(data, path))


class _TorchMachine(PickleMachine):
    """Knows what PyTorch's references and calls stand for."""

    def persistent(self, reference: object) -> StorageRef:
        match reference:
            case ("storage", Global(name=kind), str(key), str(), numel) if _is_size(numel):
                return StorageRef(kind, key, numel)
        return self.corrupt("it refers to something other than the storage of a tensor")

    def call(self, function: object, arguments: object) -> object:
        match function, arguments:
            case Global("collections", "OrderedDict"), ():
                return {}
            case Global("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"), tuple(given):
                return self._tensor(given)
            case (
                Global("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"),
                (TensorRef() as tensor, *_),
            ):
                return tensor
        return self.refuse_call(function)

    def _tensor(self, arguments: tuple[object, ...]) -> TensorRef:
        match arguments:
            case (StorageRef() as storage, offset, tuple(shape), tuple(strides), *_) if (
                _is_size(offset)
                and _are_sizes(shape)
                and _are_sizes(strides)
                and len(shape) == len(strides) <= MAX_DIMS
            ):
                return TensorRef(storage, offset, shape, strides)
        return self.corrupt("the storage, offset, shape or strides of a tensor are senseless")


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _are_sizes(values: tuple[object, ...]) -> TypeGuard[tuple[int, ...]]:
    return all(_is_size(value) for value in values)
