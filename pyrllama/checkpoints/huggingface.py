"""Checkpoints as Hugging Face's transformers writes them: a folder with ``config.json``.

Weights are safetensors or PyTorch files, in one file or in many with an index.  Rows of queries
and keys are stored by halves of a head and permuted as they are read (``models/rows.py``).
Source of names and order: ``modeling_llama.py`` and ``convert_llama_weights_to_hf.py`` of
huggingface/transformers; ``models/families.py`` has the names of other architectures.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyrllama.checkpoints.experts import expert_name, group_experts
from pyrllama.checkpoints.huggingface_config import model_of, read_config
from pyrllama.checkpoints.json_file import Fields, read_json
from pyrllama.checkpoints.safetensors_file import SafetensorsFile
from pyrllama.checkpoints.stored import PermutedTensor, StackedTensor, StoredTensor
from pyrllama.checkpoints.stored_checkpoint import StoredCheckpoint
from pyrllama.checkpoints.torchfile import TorchFile
from pyrllama.errors import CorruptFileError, ModelNotFoundError, TensorError
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING
from pyrllama.models.rows import rotated_heads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyrllama.checkpoints.stored import Source
    from pyrllama.models.families import HuggingFaceModel

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

SAFETENSORS, PYTORCH = "safetensors", "PyTorch"
SAMPLING_FIELDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
}
"""Fields of ``generation_config.json`` and what ``Sampling`` calls them."""
WEIGHTS = {
    "model.safetensors": SAFETENSORS,
    "model.safetensors.index.json": SAFETENSORS,
    "pytorch_model.bin": PYTORCH,
    "pytorch_model.bin.index.json": PYTORCH,
}
"""Where weights are looked for, in this order, and the format of each."""
OPENERS: dict[str, Callable[[Path], SafetensorsFile | TorchFile]] = {
    SAFETENSORS: SafetensorsFile,
    PYTORCH: TorchFile,
}

NAMES = {
    "model.embed_tokens.weight": TOKEN_EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": OUTPUT,
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
}
IGNORED_SUFFIX = ".rotary_emb.inv_freq"
"""The RoPE frequencies, which early files store although they follow from the config."""
_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,3})\.(.+)\.(weight|bias)", re.ASCII)
_EXPERT = re.compile(r"(.+)\.(0|[1-9]\d{0,3})\.(\w+)", re.ASCII)
_FILE_NAME = re.compile(r"\w[\w.-]{0,200}", re.ASCII)


def looks_like(path: Path) -> bool:
    """Whether the path is a folder with ``config.json`` and weights."""
    with suppress(OSError):
        return (path / CONFIG).is_file() and any((path / name).is_file() for name in WEIGHTS)
    return False


class HuggingFaceCheckpoint(StoredCheckpoint):
    """A folder of transformers' files.

    Raises ``ModelNotFoundError`` for a folder without weights, ``UnsupportedModelError`` for
    an architecture or a feature that is not implemented, ``TensorError`` for
    tensors that are missing, and the errors of ``TorchFile`` and ``SafetensorsFile``.
    """

    def _open(self) -> None:
        config = Fields(self.path / CONFIG, read_json(self.path / CONFIG))
        self._model = model_of(config)
        self.config = read_config(config)
        self.metadata = self._metadata(config)
        tensors = self._find_tensors()
        if config.flag("tie_word_embeddings"):
            tensors.pop(OUTPUT, None)
        elif OUTPUT not in tensors:
            raise TensorError(
                self.path, f"lm_head.weight is not there, though {CONFIG} does not tie it"
            )
        self._set_sources(self._sources_of(tensors))

    def sampling_settings(self) -> dict[str, Any]:
        """Return what ``generation_config.json`` says; transformers penalises the whole text."""
        config = self.metadata.get("generation_config")
        if not isinstance(config, dict):  # config.json may have a key of that name
            return {}
        settings = {
            name: config[key]
            for key, name in SAMPLING_FIELDS.items()
            if config.get(key) is not None
        }
        if "repeat_penalty" in settings:
            settings["repeat_last_n"] = -1
        return settings

    def _metadata(self, config: Fields) -> dict[str, object]:
        generation = self.path / GENERATION_CONFIG
        if not generation.is_file():
            return dict(config.values)
        return {**config.values, "generation_config": read_json(generation)}

    def _find_tensors(self) -> dict[str, StoredTensor]:
        """Return the tensors by GGUF name, those that no model needs left out."""
        name = next((name for name in WEIGHTS if (self.path / name).is_file()), None)
        if name is None:
            raise ModelNotFoundError(
                self.path, f"there are no weights beside {CONFIG}: none of {', '.join(WEIGHTS)}"
            )
        if name.endswith(".json"):
            tensors = self._read_indexed(self.path / name, WEIGHTS[name])
        else:
            self.format = f"Hugging Face {WEIGHTS[name]}"
            tensors = self._open_file(name, WEIGHTS[name])
        return {
            _gguf_name(theirs, self._model): tensor
            for theirs, tensor in tensors.items()
            if not theirs.endswith(IGNORED_SUFFIX)
        }

    def _read_indexed(self, index: Path, kind: str) -> dict[str, StoredTensor]:
        """Return the tensors of all files that an index names."""
        weight_map = Fields(index, read_json(index)).fields("weight_map").values
        if not weight_map:
            raise CorruptFileError(index, "has no weight_map; fetch the file again")
        for file in weight_map.values():
            if not (isinstance(file, str) and _FILE_NAME.fullmatch(file)):
                raise CorruptFileError(
                    index, f"weight_map has {str(file)[:80]!r}, which is not a file of the folder"
                )
        files = {file: self._open_file(file, kind) for file in sorted(set(weight_map.values()))}
        self.format = f"Hugging Face {kind}, {len(files)} files"
        for name, file in weight_map.items():
            if name not in files[file]:
                raise TensorError(self.path / file, f"lacks {name}, which {index.name} names")
        return {name: files[file][name] for name, file in weight_map.items()}

    def _open_file(self, name: str, kind: str) -> dict[str, StoredTensor]:
        file = OPENERS[kind](self.path / name)
        self._files.callback(file.close)
        return file.tensors

    def _sources_of(self, tensors: dict[str, StoredTensor]) -> dict[str, Source]:
        """Return what yields each tensor: as it lies, permuted, or stacked of experts."""
        sources: dict[str, Source] = {}
        for whole, names in group_experts(self.path, tensors).items():
            parts = [tensors.pop(name) for name in names]
            kinds = {(part.shape, part.type) for part in parts}
            if len(kinds) > 1 or len(parts[0].shape) != 2:
                raise TensorError(
                    self.path, f"the experts of {whole} are not matrices of one shape and type"
                )
            sources[whole] = StackedTensor(parts)
        for name, tensor in tensors.items():
            n_heads = rotated_heads(name, self.config)
            sources[name] = PermutedTensor((tensor,), n_heads) if n_heads else tensor
        return sources


def _gguf_name(name: str, model: HuggingFaceModel) -> str:
    """Return GGUF's name; one that the model does not have stays as it is."""
    found = _LAYER.fullmatch(name)
    if not found:
        return NAMES.get(name, name)
    layer, module, kind = int(found[1]), found[2], found[3]
    ours = LAYER_NAMES.get(module) or model.modules.get(module)
    if ours:
        return f"blk.{layer}.{ours}.{kind}"
    if model.experts and kind == "weight" and (part := _EXPERT.fullmatch(module)):
        matrix = model.experts.modules.get(part[3])
        if part[1] == model.experts.pattern and matrix:
            return expert_name(layer, matrix, int(part[2]))
    return name
