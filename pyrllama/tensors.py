"""Tensors as checkpoints store them: their types, their names and shapes, their bytes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TensorType(enum.IntEnum):
    """How the numbers of a tensor are stored; the codes are GGUF's (``ggml_type``)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a checkpoint says of one tensor: GGUF's name for it, its shape and its type.

    ``shape`` is in NumPy's order: a matrix is ``(rows, cols)``, a row for every output, and the
    matrices of experts are one tensor, ``(experts, rows, cols)``.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's stored bytes: ``data`` is ``(rows, bytes per row)`` uint8, C-contiguous.

    A vector is one row; the matrices of experts follow each other.  ``data`` may be a view of a
    mapped file and is read-only then.
    """

    info: TensorInfo
    data: NDArray[np.uint8]
