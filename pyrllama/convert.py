"""Any checkpoint that opens, with its tokenizer, as one GGUF file.

Matrices are stored in the type that is asked for, vectors and routers in F32.  A tensor goes
through memory in slices, so that converting takes no more of it than a few of them.

Source of the keys and of the codes for file types: the GGUF specification in ggml's
``docs/gguf.md``, and ``llama_ftype`` in llama.cpp's ``llama.h``.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.checkpoints.gguf_keys import config_keys
from pyrllama.checkpoints.gguf_rows import read_for_gguf
from pyrllama.checkpoints.gguf_writer import PendingTensor, write_gguf
from pyrllama.errors import SettingError
from pyrllama.model_config import Llama3Rope
from pyrllama.models.llama import expected_tensors, is_router
from pyrllama.models.rope import ROPE_FACTORS, rope_frequencies
from pyrllama.quants import block_size, dequantize, names_of, quantize
from pyrllama.tensors import TensorInfo, TensorType
from pyrllama.tokenizer.to_gguf import vocabulary_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.model_config import ModelConfig

FILE_TYPES = {
    TensorType.F32: 0,
    TensorType.F16: 1,
    TensorType.Q4_0: 2,
    TensorType.Q8_0: 7,
    TensorType.BF16: 32,
}
"""``general.file_type``: in which type most of a file's matrices are."""
QUANTIZATION_VERSION = 2
"""``general.quantization_version``: of the formats of ggml's blocks since 2023."""
ROW_OF_ODD_LENGTH = TensorType.F16
"""What a matrix becomes whose rows are not whole blocks of the type that is asked for."""
_SLICE_NUMBERS = 1 << 22


def export_gguf(
    checkpoint: Checkpoint,
    tokenizer: Path,
    path: Path,
    type_: TensorType,
    *,
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a checkpoint and its tokenizer as a GGUF file that llama.cpp loads, too.

    ``tokenizer`` is a SentencePiece model, or the GGUF file whose vocabulary is taken over.
    ``metadata`` adds keys (``general.name``, ``tokenizer.chat_template``) or replaces them.
    ``progress`` is called with the tensors written and their number.

    Raises ``SettingError`` for a type that cannot be written, ``TokenizerError`` for a
    tokenizer that cannot be, and what reading the checkpoint and writing the file raise.
    """
    if type_ not in FILE_TYPES:
        raise SettingError("the type", type_.name, f"one of {names_of(FILE_TYPES)}")
    described = model_metadata(checkpoint.config, FILE_TYPES[type_])
    described |= vocabulary_metadata(tokenizer, checkpoint.config.vocab_size)
    described |= dict(metadata or {})
    tensors = [*_tensors(checkpoint, type_, progress), *stretched_rope_tensor(checkpoint)]
    write_gguf(path, described, tensors)


def model_metadata(config: ModelConfig, file_type: int) -> dict[str, Any]:
    """Return the keys that make a GGUF file a model of this architecture and these sizes.

    ``file_type`` is the code of the type that most matrices have (``general.file_type``).
    """
    return {
        "general.architecture": config.architecture,
        "general.file_type": file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
        **config_keys(config),
    }


def _tensors(
    checkpoint: Checkpoint, type_: TensorType, progress: Callable[[int, int], None] | None
) -> Iterator[PendingTensor]:
    """Yield the tensors that the model uses, in the order in which it uses them."""
    names = [name for name in expected_tensors(checkpoint.config) if name in checkpoint.tensors]
    for number, name in enumerate(names, 1):
        stored = checkpoint.tensors[name]
        info = dataclasses.replace(stored, type=_stored_type(stored, type_))
        done = partial(progress, number, len(names)) if progress else None
        yield PendingTensor(info, partial(_converted, checkpoint, info, done))


def stretched_rope_tensor(checkpoint: Checkpoint) -> list[PendingTensor]:
    """Return Llama 3.1's RoPE scaling as GGUF has it: a tensor of factors, unless there is one."""
    is_stretched = isinstance(checkpoint.config.rope_scaling, Llama3Rope)
    if not is_stretched or ROPE_FACTORS in checkpoint.tensors:
        return []
    factors = _rope_factors(checkpoint.config)
    info = TensorInfo(ROPE_FACTORS, factors.shape, TensorType.F32)
    return [PendingTensor(info, lambda: [factors.view(np.uint8)])]


def _stored_type(info: TensorInfo, type_: TensorType) -> TensorType:
    if len(info.shape) == 1 or is_router(info.name):
        return TensorType.F32
    return type_ if info.shape[-1] % block_size(type_) == 0 else ROW_OF_ODD_LENGTH


def _converted(
    checkpoint: Checkpoint, info: TensorInfo, done: Callable[[], None] | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield a tensor's rows in another type, a slice at a time; the same type passes as it is."""
    tensor = read_for_gguf(checkpoint, info.name)
    cols = info.shape[-1]
    step = max(1, _SLICE_NUMBERS // cols)
    for start in range(0, len(tensor.data), step):
        rows = tensor.data[start : start + step]
        if tensor.info.type != info.type:
            rows = quantize(info.type, dequantize(tensor.info.type, rows, cols))
        yield rows
    checkpoint.release(info.name)
    if done:
        done()


def _rope_factors(config: ModelConfig) -> NDArray[np.float32]:
    """Return by what Llama 3.1's scaling divides each RoPE frequency: ``(head_dim / 2,)``."""
    plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    return (plain / rope_frequencies(config)).astype(np.float32)
