"""What a model will take of this machine's memory, and whether that much is free.

The need is worked out from the checkpoint's headers, before a weight is read.  What is free
is known on Linux: the system's own estimate (``MemAvailable`` of proc(5)) and the limits of
the control groups that the process is in, version 1 or 2.  Where it is unknown, nothing is
refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from pyrllama.core import BLOCK_TOKENS, blocks_for
from pyrllama.errors import NotEnoughMemoryError
from pyrllama.models.llama import expected_tensors
from pyrllama.quants import codebook, row_bytes
from pyrllama.reference import backend as reference
from pyrllama.tensors import TensorType
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyrllama.model_config import ModelConfig
    from pyrllama.tensors import TensorInfo

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")

SMALLER_TYPES = (TensorType.Q8_0, TensorType.Q4_0)
"""What a refusal may offer instead, the most exact first."""
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a model will take, and how many are ``free`` (None where unknown)."""

    weights: int
    kv_cache: int
    working: int
    """Activations and logits of the largest batch."""
    free: int | None = None
    repacked: int = 0
    """What weights take beyond their stored size because their codebooks are written out."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.working

    def __str__(self) -> str:
        parts = (
            f"needs {format_bytes(self.total)} of memory (weights {format_bytes(self.weights)}, "
            f"KV cache {format_bytes(self.kv_cache)}, working {format_bytes(self.working)})"
        )
        if self.repacked:
            parts += f", {format_bytes(self.repacked)} of it because codebooks are written out"
        return parts if self.free is None else f"{parts}, {format_bytes(self.free)} are free"

    @property
    def fits(self) -> bool:
        """Whether that much is free, as far as is known."""
        return self.free is None or self.total <= self.free


def check_memory(
    config: ModelConfig,
    tensors: Iterable[TensorInfo],
    weight_type: TensorType | None,
    max_seq_len: int,
    *,
    compiled: bool,
    kv_type: TensorType = TensorType.F16,
) -> MemoryNeed:
    """Return what a model will take; see ``estimate``.

    Raises ``NotEnoughMemoryError`` if more than that is not free, with what would fit.
    """
    tensors = list(tensors)
    need = estimate(config, tensors, weight_type, max_seq_len, compiled=compiled, kv_type=kv_type)
    if need.fits:
        return need
    mend = "the kernels would take less than the reference: --backend cpu"
    if compiled:
        mend = _what_fits(config, tensors, max_seq_len, kv_type)
    raise NotEnoughMemoryError(f"the model {need}; {mend} (--no-memory-check tries all the same)")


def _what_fits(
    config: ModelConfig, tensors: list[TensorInfo], max_seq_len: int, kv_type: TensorType
) -> str:
    """Return which smaller type would fit into what is free, or what else to try."""
    for kind in SMALLER_TYPES:
        need = estimate(config, tensors, kind, max_seq_len, compiled=True, kv_type=kv_type)
        offer = f"--quantize {kind.name.lower()} would take {format_bytes(need.total)}"
        if need.fits:
            return offer
    return f"even {offer}; choose a smaller model, or a shorter --max-seq-len"


def estimate(
    config: ModelConfig,
    tensors: Iterable[TensorInfo],
    weight_type: TensorType | None,
    max_seq_len: int,
    *,
    compiled: bool,
    kv_type: TensorType = TensorType.F16,
) -> MemoryNeed:
    """Return what a model will take with its weights converted to a type, or as stored.

    ``tensors`` are those of the checkpoint; what the model does not use counts for nothing.
    ``compiled`` is for the CPU's kernels, with their packed layout; without, it is for the
    reference, which holds everything in float32.
    """
    expected = expected_tensors(config)
    infos = [info for info in tensors if info.name in expected]
    positions = blocks_for(max_seq_len) * BLOCK_TOKENS
    if not compiled:
        return MemoryNeed(
            weights=sum(math.prod(info.shape) for info in infos) * _FLOAT32,
            kv_cache=positions * 2 * config.n_layers * config.kv_dim * _FLOAT32,
            working=_working_bytes(config, reference.MAX_BATCH_TOKENS),
            free=free_memory(),
        )
    from pyrllama.cpu.kv_memory import head_stride, kv_bytes_per_token  # noqa: PLC0415
    from pyrllama.cpu.model import MAX_BATCH_TOKENS  # noqa: PLC0415 - brings LLVM

    rotations = 2 * head_stride(config, kv_type) * max_seq_len * _FLOAT32
    return MemoryNeed(
        weights=sum(_packed_bytes(info, weight_type) for info in infos),
        kv_cache=positions * kv_bytes_per_token(config, kv_type),
        working=_working_bytes(config, min(MAX_BATCH_TOKENS, max_seq_len)) + rotations,
        free=free_memory(),
        repacked=sum(_repacked_bytes(info) for info in infos) if weight_type is None else 0,
    )


def _repacked_bytes(info: TensorInfo) -> int:
    """Return what a tensor of a codebook type takes beyond its stored size."""
    if info.type not in codebook.LEVELS:
        return 0
    return _packed_bytes(info, None) - info.shape[0] * row_bytes(info.type, info.shape[1])


def packed_bytes(info: TensorInfo) -> int:
    """Return the bytes of a tensor in memory where it keeps its type."""
    return _packed_bytes(info, None)


def _packed_bytes(info: TensorInfo, wanted: TensorType | None) -> int:
    """Return the bytes of a tensor in memory; of a type that cannot run, those stored."""
    from pyrllama.cpu.weights import PACKED, packed_bytes, packed_type  # noqa: PLC0415

    if len(info.shape) == 1:
        return math.prod(info.shape) * _FLOAT32
    kind = packed_type(info, wanted)
    if kind not in PACKED:
        return math.prod(info.shape[:-1]) * row_bytes(kind, info.shape[-1])
    return packed_bytes(info.shape, kind)


def _working_bytes(config: ModelConfig, batch_tokens: int) -> int:
    """Return the bytes of a batch's activations and logits, quantised copies included."""
    numbers = config.vocab_size + 2 * config.dim + 2 * config.q_dim + 2 * config.kv_dim
    ffn_numbers, ffn_tokens, quantised = 3 * config.ffn_dim, batch_tokens, config.ffn_dim
    if config.experts is not None:  # each has inputs and outputs of its own
        ffn_numbers += 2 * config.dim
        ffn_tokens *= config.experts.used
        quantised += config.dim
    outside = batch_tokens * (numbers * _FLOAT32 + config.dim + config.q_dim)
    return outside + ffn_tokens * (ffn_numbers * _FLOAT32 + quantised)


# --- what is free -----------------------------------------------------------------------------


def free_memory() -> int | None:
    """Return the bytes that this process can still take without swapping; None if unknown."""
    amounts = [_available(), *(_room(files) for files in _cgroups())]
    known = [amount for amount in amounts if amount is not None]
    return max(0, min(known)) if known else None


def _available() -> int | None:
    """Return Linux's estimate, in which the page cache counts as free."""
    for line in _read(PROC / "meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return _number(value.removesuffix("kB"), 1024)
    return None


class _CgroupFiles(NamedTuple):
    """A control group's folder and the names that its version has for the same three things."""

    folder: Path
    limit: str
    usage: str
    reclaimable: str


def _cgroups() -> Iterator[_CgroupFiles]:
    """Yield the memory control groups that bound this process, from its own up to the root."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for folder in (own, *own.parents):
            yield _CgroupFiles(root / folder, *names)


def _room(files: _CgroupFiles) -> int | None:
    """Return what a control group still lets its processes take; None without a limit."""
    limit = _number(_read(files.folder / files.limit))
    usage = _number(_read(files.folder / files.usage))
    if limit is None or usage is None:
        return None
    for line in _read(files.folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == files.reclaimable:  # cached pages of files, given back on demand
            usage -= _number(value) or 0
    return limit - usage


def _number(text: str, unit: int = 1) -> int | None:
    text = text.strip()
    return int(text) * unit if text.isascii() and text.isdigit() else None


def _read(path: Path) -> str:
    """Return a small text of the system's, empty where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
