"""``rllama inspect``: what a checkpoint is, without loading its weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pyrllama import memory
from pyrllama.checkpoints import open_checkpoint
from pyrllama.cli.inspect_view import print_report
from pyrllama.cli.model import locate
from pyrllama.cli.options import PATH
from pyrllama.core import BLOCK_TOKENS, as_dict, blocks_for
from pyrllama.errors import (
    CheckpointError,
    ModelNotFoundError,
    RllamaError,
    TensorError,
    UnsupportedModelError,
)
from pyrllama.models.rope import ROPE_FACTORS
from pyrllama.quants import row_bytes
from pyrllama.tensors import TensorType
from pyrllama.tokenizer import find_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from pyrllama.model_config import ModelConfig
    from pyrllama.tensors import TensorInfo

GGUF_MAGIC = b"GGUF"
SHOWN_ELEMENTS = 8
"""Elements of a long array that are shown."""
ESTIMATED_TYPES = (TensorType.F32, TensorType.F16, TensorType.Q8_0, TensorType.Q4_0)


@dataclass(frozen=True, slots=True)
class Contents:
    """What an opened checkpoint says; ``problem`` is why it cannot be run, if it cannot."""

    path: Path
    format: str
    architecture: str | None
    config: ModelConfig | None
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, Any]
    problem: str | None = None


EPILOG = """\b
Examples:
  rllama inspect model.gguf
  rllama inspect LLaMA/7B --tensors
  rllama inspect hf:TheBloke/Llama-2-7B-GGUF:Q4_0 --json
"""


@click.command(epilog=EPILOG, short_help="Describe a checkpoint without loading it.")
@click.argument("path", type=PATH, required=False)
@click.option("--tokenizer-path", "--tokenizer-model", type=PATH, help="Tokenizer to describe.")
@click.option("--param-path", type=PATH, help="params.json; by default the one beside the weights.")
@click.option("--tensors", "all_tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, all tensors in it.")
def inspect(
    path: Path | None,
    tokenizer_path: Path | None,
    param_path: Path | None,
    all_tensors: bool,
    as_json: bool,
) -> int:
    """Describe a checkpoint: architecture, tensors, tokenizer, metadata, memory it would take.

    PATH is a file or a folder in any format that can be run, or hf:OWNER/REPO[:FILE or
    quantisation]; by default the model that comes with rllama. A GGUF file that cannot be run -
    another architecture, or a vocabulary alone - is described too.
    """
    path = locate(path, quiet=as_json)
    contents = open_contents(path, param_path)
    report = describe(contents)
    vocab_size = contents.config.vocab_size if contents.config else None
    report["tokenizer"] = describe_tokenizer(path, tokenizer_path, vocab_size)
    if as_json:
        click.echo(json.dumps(report))
    else:
        print_report(report, all_tensors=all_tensors)
    return 0


def open_contents(path: Path, param_path: Path | None) -> Contents:
    """Read a checkpoint's headers; of a GGUF file that is no runnable model, what it says."""
    try:
        with open_checkpoint(path, param_path) as checkpoint:
            return Contents(
                path=checkpoint.path,
                format=checkpoint.format,
                architecture=checkpoint.config.architecture,
                config=checkpoint.config,
                tensors=tuple(checkpoint.tensors.values()),
                metadata=abbreviate(checkpoint.metadata),
            )
    except (ModelNotFoundError, TensorError, UnsupportedModelError) as error:
        if not _is_gguf(Path(error.path)):
            raise
        return _open_gguf(error)


def _open_gguf(error: CheckpointError) -> Contents:
    from pyrllama.checkpoints.gguf_file import GgufFile  # noqa: PLC0415

    path = Path(error.path)
    with closing(GgufFile(path)) as file:
        return Contents(
            path=path,
            format=f"GGUF {file.version}",
            architecture=file.metadata.get("general.architecture"),
            config=None,
            tensors=tuple(file.tensors.values()),
            metadata=abbreviate(file.metadata),
            problem=str(error),
        )


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def describe(contents: Contents) -> dict[str, Any]:
    """Return the report of a checkpoint as plain dictionaries, lists and numbers."""
    tensors = [
        {
            "name": info.name,
            "shape": list(info.shape),
            "type": info.type.name,
            "bytes": stored_bytes(info),
        }
        for info in contents.tensors
    ]
    return {
        "path": str(contents.path),
        "format": contents.format,
        "architecture": contents.architecture,
        "problem": contents.problem,
        "config": as_dict(contents.config) if contents.config else None,
        "parameters": sum(
            math.prod(info.shape) for info in contents.tensors if info.name != ROPE_FACTORS
        ),
        "active_parameters": active_parameters(contents.config, contents.tensors),
        "bytes": sum(stored_bytes(info) for info in contents.tensors),
        "types": _types(contents.tensors),
        "tensors": tensors,
        "memory": estimate_memory(contents.config, contents.tensors) if contents.config else None,
        "metadata": contents.metadata,
    }


def active_parameters(config: ModelConfig | None, tensors: tuple[TensorInfo, ...]) -> int | None:
    """Return how many parameters a token meets, where a model has experts."""
    if config is None or config.experts is None:
        return None
    sizes = {i.name: math.prod(i.shape) for i in tensors if i.name != ROPE_FACTORS}
    of_experts = sum(size for name, size in sizes.items() if name.endswith("_exps.weight"))
    unchosen = config.experts.count - config.experts.used
    return sum(sizes.values()) - of_experts // config.experts.count * unchosen


def _types(tensors: tuple[TensorInfo, ...]) -> dict[str, dict[str, int]]:
    """Return how many tensors each type has, and their bytes, stored and in memory."""
    counts = Counter(info.type for info in tensors)
    sizes: Counter[TensorType] = Counter()
    in_memory: Counter[TensorType] = Counter()
    for info in tensors:
        sizes[info.type] += stored_bytes(info)
        in_memory[info.type] += memory.packed_bytes(info)
    return {
        kind.name: {"tensors": count, "bytes": sizes[kind], "memory": in_memory[kind]}
        for kind, count in counts.most_common()
    }


def stored_bytes(info: TensorInfo) -> int:
    """Return the bytes of a tensor as the file holds it."""
    *rows, cols = info.shape or (1,)
    return math.prod(rows) * row_bytes(info.type, cols)


def estimate_memory(config: ModelConfig, tensors: tuple[TensorInfo, ...]) -> dict[str, Any]:
    """Return what the model would take in memory in each type, with its whole context."""
    context = config.context_length
    needs = {
        kind.name: memory.estimate(config, tensors, kind, context, compiled=True)
        for kind in ESTIMATED_TYPES
    }
    cache = next(iter(needs.values())).kv_cache
    return {
        "context": context,
        "kv_cache_per_token": cache // (blocks_for(context) * BLOCK_TOKENS),
        "kv_cache": cache,
        "weights": {name: need.weights for name, need in needs.items()},
        "total": {name: need.total for name, need in needs.items()},
    }


def describe_tokenizer(path: Path, explicit: Path | None, vocab_size: int | None) -> dict[str, Any]:
    """Return what the model's tokenizer is, or the problem why there is none."""
    try:
        file = find_tokenizer(path, explicit, vocab_size)
        tokenizer = load_tokenizer(file)
    except RllamaError as error:
        if explicit is not None:
            raise
        return {"problem": str(error)}
    return {
        "path": str(file),
        "kind": tokenizer.kind,
        "tokens": tokenizer.vocab_size,
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "stop": sorted(tokenizer.stop_ids),
        "adds_bos": tokenizer.add_bos,
    }


def abbreviate(value: Any) -> Any:
    """Return metadata as plain JSON values, a long array as its length and its beginning."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case np.generic():
            return abbreviate(value.item())
        case Mapping():
            return {str(key): abbreviate(member) for key, member in value.items()}
        case Sequence() | np.ndarray() if not isinstance(value, bytes):
            first = [abbreviate(member) for member in value[:SHOWN_ELEMENTS]]
            return first if len(value) <= SHOWN_ELEMENTS else {"length": len(value), "first": first}
        case _:
            return str(value)
