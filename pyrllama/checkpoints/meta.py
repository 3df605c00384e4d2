"""Checkpoints as Meta publishes them: ``consolidated.NN.pth`` and ``params.json``.

A large model is cut into 2, 4 or 8 shards, which are joined as the shapes demand: rows of
column-parallel matrices (``wq``, ``w1``, ``output``), columns of row-parallel ones (``wo``,
``w2``, and the embedding up to Llama 2).  Queries and keys are in interleaved RoPE order.

Source of names and cuts: ``llama/model.py`` of meta-llama/llama and ``models/llama3`` of
meta-llama/llama-models.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from pyrllama.checkpoints.json_file import Fields, read_json
from pyrllama.checkpoints.meta_params import read_config
from pyrllama.checkpoints.stored import JoinedTensor, StoredTensor
from pyrllama.checkpoints.stored_checkpoint import StoredCheckpoint
from pyrllama.checkpoints.torchfile import TorchFile, find_unzipped, starts_like_torch
from pyrllama.errors import ModelNotFoundError, TensorError, UnknownFormatError
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING, check_config, expected_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pyrllama.checkpoints.stored import Source

PARAMS = "params.json"
IGNORED = frozenset({"rope.freqs"})
"""The RoPE frequencies, which LLaMA 1 and 2 store although they follow from the config."""

NAMES = {
    "tok_embeddings.weight": TOKEN_EMBEDDING,
    "norm.weight": "output_norm.weight",
    "output.weight": OUTPUT,
}
LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,3})\.(.+)\.weight", re.ASCII)
_SHARD = re.compile(r"consolidated(?:\.(\d\d))?(\.pth)?", re.ASCII)


def looks_like(path: Path) -> bool:
    """Whether the path is a PyTorch file, or a folder with Meta's shards or an unzipped one."""
    with suppress(OSError):
        return bool(path.is_dir() and _shards_in(path)) or starts_like_torch(path)
    return False


class MetaCheckpoint(StoredCheckpoint):
    """A folder of shards, zipped or unzipped, or the only shard itself.

    ``params.json`` is looked for beside the shards and in the folder above, unless
    ``param_path`` names it.  Raises ``ModelNotFoundError`` for shards or parameters that are
    not there, ``TensorError`` for shards that do not fit together, and the errors of
    ``TorchFile``.
    """

    def __init__(self, path: Path, param_path: Path | None = None) -> None:
        self._param_path = param_path
        super().__init__(path)

    def _open(self) -> None:
        shards = [self._open_shard(path) for path in _find_shards(self.path)]
        parts = self._parts(shards)
        params = Fields(*self._read_params())
        self.format = "Meta PyTorch" + (f", {len(shards)} shards" if len(shards) > 1 else "")
        self.metadata = params.values
        self.config = read_config(params, parts)
        check_config(params.path, self.config)
        shapes = expected_tensors(self.config)
        self._set_sources(
            {name: self._join(name, found, shapes.get(name)) for name, found in parts.items()}
        )

    def _open_shard(self, path: Path) -> TorchFile:
        shard = TorchFile(path)
        self._files.callback(shard.close)
        return shard

    def _read_params(self) -> tuple[Path, dict[str, object]]:
        folder = self.path if self.path.is_dir() else self.path.parent
        candidates = [self._param_path] if self._param_path else [folder / PARAMS]
        if not self._param_path:
            candidates.append(folder.parent / PARAMS)
        for candidate in candidates:
            if candidate.is_file():
                return candidate, read_json(candidate)
        raise ModelNotFoundError(
            candidates[0], "there is no such file with the model's sizes; name it by --param-path"
        )

    def _parts(self, shards: Sequence[TorchFile]) -> dict[str, list[StoredTensor]]:
        """Return the parts of every tensor, in the order of the shards, by GGUF name."""
        names = [name for name in shards[0].tensors if name not in IGNORED]
        if not any(name in NAMES for name in names):
            raise UnknownFormatError(
                shards[0].path,
                "these PyTorch weights are not named as Meta names them; if they are Hugging "
                "Face's, give the folder that also holds config.json",
            )
        for shard in shards:
            odd = set(names) ^ (set(shard.tensors) - IGNORED)
            if odd:
                raise TensorError(
                    shard.path, f"{min(odd)} is in one shard, but not in all; fetch them again"
                )
        parts = {_gguf_name(name): [shard.tensors[name] for shard in shards] for name in names}
        if is_tied(parts):
            parts.pop(OUTPUT, None)
        return parts

    def _join(self, name: str, parts: list[StoredTensor], shape: tuple[int, ...] | None) -> Source:
        """Choose the way that gives the shape; one tensor, or equal copies, stay as they are."""
        first = parts[0]
        for number, part in enumerate(parts):
            if (part.shape, part.type) != (first.shape, first.type):
                raise TensorError(
                    self.path,
                    f"{name} is {part.stored_as} of shape {part.shape} in shard {number}, but "
                    f"{first.stored_as} of shape {first.shape} in shard 0; the shards are of "
                    f"different models",
                )
        if len(parts) == 1 or first.shape == shape or len(first.shape) != 2:
            return first
        for joined in (JoinedTensor(parts, 0), JoinedTensor(parts, 1)):
            if joined.shape == shape:
                return joined
        raise TensorError(
            self.path,
            f"{name} has the shape {first.shape} in each of {len(parts)} shards, which gives no "
            f"{shape}; the shards and {PARAMS} do not belong together",
        )


def is_tied(parts: Mapping[str, list[StoredTensor]]) -> bool:
    """Whether the output projection is the embedding: left out, or the same stored bytes.

    Llama 3.2's files name both, but store one.
    """
    if OUTPUT not in parts:
        return True
    pairs = zip(parts[OUTPUT], parts.get(TOKEN_EMBEDDING, []), strict=False)
    return all(
        (output.storage, output.offset, output.shape) == (token.storage, token.offset, token.shape)
        for output, token in pairs
    )


def _gguf_name(name: str) -> str:
    """Return GGUF's name; one that Meta's models do not have stays as it is."""
    found = _LAYER.fullmatch(name)
    if found and found[2] in LAYER_NAMES:
        return f"blk.{int(found[1])}.{LAYER_NAMES[found[2]]}.weight"
    return NAMES.get(name, name)


def _find_shards(path: Path) -> list[Path]:
    """Return the shards in order; ``ModelNotFoundError`` where one is missing."""
    shards = _shards_in(path) if path.is_dir() else {}
    if not shards:
        return [_only_shard(path)]
    missing = sorted(set(range(max(shards) + 1)) - set(shards))
    if missing:
        raise ModelNotFoundError(
            path,
            f"has shard {max(shards):02} of the model, but not consolidated.{missing[0]:02}; "
            f"fetch all shards",
        )
    return [shards[number] for number in sorted(shards)]


def _only_shard(path: Path) -> Path:
    if not path.exists():
        raise ModelNotFoundError(path, "there is no such file or folder; check the path")
    if path.is_dir() and not find_unzipped(path):
        raise ModelNotFoundError(path, "there is no consolidated.00.pth in this folder")
    siblings = _shards_in(path.parent)
    if path in siblings.values() and len(siblings) > 1:
        raise ModelNotFoundError(
            path, f"is one of {len(siblings)} shards; give the folder, {path.parent}"
        )
    return path


def _shards_in(folder: Path) -> dict[int, Path]:
    """Return the shards by number; of a zip and its unzipped folder, the zip.

    ``consolidated`` without a number is what LLaMA-7B unzips to; it is shard 0 where there
    is no other.
    """
    shards: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        found = _SHARD.fullmatch(path.name)
        is_zip = bool(found and found[2])
        if found and path.is_dir() != is_zip and (is_zip or find_unzipped(path)):
            number = int(found[1] or 0)
            if found[1] or number not in shards:
                shards[number] = path
    return shards
