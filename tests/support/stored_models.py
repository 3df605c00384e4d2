"""Models of random bits: of types too that nothing can be quantised to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.kernels import usual_stored
from support.tiny_models import MemoryCheckpoint, random_weights

from pyrllama.quants import dequantize
from pyrllama.tensors import Tensor

if TYPE_CHECKING:
    from pyrllama.model_config import ModelConfig
    from pyrllama.tensors import TensorType


class StoredCheckpoint(MemoryCheckpoint):
    """A checkpoint whose matrices are random bits; ``numbers`` are what they stand for."""

    def __init__(self, config: ModelConfig, kind: TensorType, std: float) -> None:
        super().__init__(config, random_weights(config, std=std), kind)
        matrices = [info for info in self.tensors.values() if len(info.shape) == 2]
        self.stored = {
            info.name: usual_stored(kind, (info.shape[0], info.shape[1]), seed, std)
            for seed, info in enumerate(matrices)
        }
        self.numbers = dict(self._weights) | {
            name: dequantize(kind, rows, self.tensors[name].shape[1])
            for name, rows in self.stored.items()
        }

    def read(self, name: str) -> Tensor:
        if name in self.stored:
            return Tensor(self.tensors[name], self.stored[name])
        return super().read(name)
