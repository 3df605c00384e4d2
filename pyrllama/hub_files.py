"""Which files of a repository on the Hugging Face hub make up the model that is wanted.

Repositories come in three kinds: many quantisations of one model as GGUF files, one checkpoint
of transformers, or Meta's original.  ``choose`` looks at names and sizes alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pyrllama.checkpoints.huggingface import CONFIG, GENERATION_CONFIG, WEIGHTS
from pyrllama.errors import HubChoiceError
from pyrllama.quants import RUNNABLE, runnable_names
from pyrllama.tensors import TensorType
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PREFERRED = (
    "Q8_0", "F16", "BF16", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_NL",
    "IQ4_XS", "Q4_1", "Q4_0", "MXFP4", "F32", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
"""GGUF types in the order in which they are taken when none is named: near lossless first."""
WEIGHT_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pth")
NEIGHBOURS = (
    CONFIG, GENERATION_CONFIG, "params.json", "tokenizer*.json", "tokenizer*.model*", "tok*.bin",
    "tekken.json", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
)  # fmt: skip
"""Small files that a checkpoint needs beside its weights."""
PROJECTOR = "mmproj"
"""Part of the names of GGUF files that hold an image encoder and no language model."""
MOST_NAMED = 12
"""Files that an error message names."""

_QUANTISATION = re.compile(
    r"(?<![a-z0-9])"
    r"(I?Q[1-8]_(?:K(?:_(?:XL|[SML]))?|XXS|XS|NL|[01]|[SM])|TQ[12]_0|MXFP4|B?F16|FP16|F32|FP32)"
    r"(?![a-z0-9_])",
    re.ASCII | re.IGNORECASE,
)
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf", re.ASCII | re.IGNORECASE)
_SHARD = re.compile(r"-\d{5}-of-\d{5}", re.ASCII)
_META_SHARD = re.compile(r"consolidated\.\d\d\.pth", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; ``size`` and ``sha256`` are None where the hub does not say."""

    path: str
    size: int | None = None
    sha256: str | None = None

    @property
    def folder(self) -> PurePosixPath:
        """The folder that it lies in."""
        return PurePosixPath(self.path).parent

    @property
    def name(self) -> str:
        """Its name without the folder."""
        return PurePosixPath(self.path).name

    @property
    def quantisation(self) -> str | None:
        """The GGUF type that its name tells, in capitals: ``Q4_K_M``."""
        found = _QUANTISATION.findall(self.name)
        return normalised(found[-1]) if found else None

    @property
    def is_part(self) -> bool:
        """Whether it is one of several parts of a GGUF file."""
        return _PART.search(self.name) is not None

    def __str__(self) -> str:
        return self.path if self.size is None else f"{self.path} ({format_bytes(self.size)})"


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to fetch; the model is the first one, or with ``is_folder`` the folder of it."""

    files: tuple[HubFile, ...]
    is_folder: bool


def choose(files: Sequence[HubFile], wanted: str | None = None) -> Selection:
    """Return the files of a model: the one ``wanted`` by name or quantisation, or the best.

    Without ``wanted``: a GGUF file of the first type of ``PREFERRED`` that is there, else the
    checkpoint of transformers (safetensors before PyTorch), else Meta's.  Raises
    ``HubChoiceError`` that names the files when nothing fits, or more than one does.
    """
    if wanted is None:
        return _best(files)
    named = [file for file in files if wanted in {file.path, file.name}]
    if named:
        return _named(files, _only(named, wanted))
    if _QUANTISATION.fullmatch(wanted):
        return _quantised(files, normalised(wanted))
    raise HubChoiceError(
        f"there is no file {wanted!r}, and that is no quantisation such as Q8_0 either; there "
        f"are {listed(_weights(files))}"
    )


def normalised(quantisation: str) -> str:
    """Return the one spelling of a quantisation: ``fp16`` and ``F16`` are the same."""
    name = quantisation.upper()
    return name.replace("FP", "F") if name.startswith("FP") else name


def runs(quantisation: str) -> bool:
    """Tell whether tensors of a type can be computed with; ``Q4_K_M`` is of type ``Q4_K``."""
    base = re.sub(r"(_K)_(?:XL|[SML])$", r"\1", quantisation)
    return base in {kind.name for kind in RUNNABLE}


def listed(files: Iterable[HubFile]) -> str:
    """Return files with their sizes for a message."""
    names = [str(file) for file in files]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more if names else "no weights at all"


def _best(files: Sequence[HubFile]) -> Selection:
    models = [file for file in _ggufs(files) if not file.is_part]
    for kind in PREFERRED:
        if found := [file for file in models if file.quantisation == kind]:
            return Selection((_only(found, kind),), is_folder=False)
    if found := [file for file in models if file.quantisation is None]:
        return Selection((_only(found, "the model"),), is_folder=False)
    for find in (_transformers, _meta):
        if (selection := find(files)) is not None:
            return selection
    raise HubChoiceError(
        f"there is neither a whole GGUF file of a type that runs ({runnable_names()}) nor a "
        f"checkpoint with {CONFIG} or params.json; there are {listed(_weights(files))}: name one "
        f"as OWNER/REPO:FILE to fetch it all the same"
    )


def _named(files: Sequence[HubFile], file: HubFile) -> Selection:
    """Take a file by its name, with what it needs beside it."""
    if file.is_part:
        _refuse_parts([file])
    if file.name.lower().endswith(".gguf"):
        return Selection((file,), is_folder=False)
    if file.name.endswith(".safetensors"):
        whole = _transformers(files)
        if whole is not None and file in whole.files:
            return whole
    return Selection((file, *_neighbours(files, file.folder)), is_folder=False)


def _quantised(files: Sequence[HubFile], wanted: str) -> Selection:
    found = [file for file in _ggufs(files) if file.quantisation == wanted]
    others = [file for file in _ggufs(files) if not file.is_part]
    if not found:
        mend = f"; there are {listed(others or _weights(files))}"
        if not others and wanted in TensorType.__members__ and runs(wanted):
            mend += f": leave :{wanted} out and convert the weights at load, --quantize or --f16"
        raise HubChoiceError(f"there is no GGUF file of {wanted}{mend}")
    if not runs(wanted):
        runnable = [file for file in others if runs(file.quantisation or "")]
        raise HubChoiceError(
            f"{wanted} does not run, only {runnable_names()} do; of these there are "
            f"{listed(runnable)}"
        )
    whole = [file for file in found if not file.is_part]
    if not whole:
        _refuse_parts(found)
    return Selection((_only(whole, wanted),), is_folder=False)


def _refuse_parts(parts: Sequence[HubFile]) -> None:
    raise HubChoiceError(
        f"{listed(parts)}: a GGUF file in parts cannot be read; fetch the parts and join them with "
        f"llama.cpp's llama-gguf-split --merge, or choose a quantisation that is in one file"
    )


def _only(found: Sequence[HubFile], what: str) -> HubFile:
    if len(found) > 1:
        raise HubChoiceError(
            f"{len(found)} files may be {what}: {listed(found)}; name one as OWNER/REPO:FILE"
        )
    return found[0]


def _ggufs(files: Iterable[HubFile]) -> list[HubFile]:
    return [
        file
        for file in files
        if file.name.lower().endswith(".gguf") and PROJECTOR not in file.name.lower()
    ]


def _transformers(files: Sequence[HubFile]) -> Selection | None:
    """Return the checkpoint at the top: config, one kind of weights, tokenizer."""
    top = {file.name: file for file in files if "/" not in file.path}
    weights = next((name for name in WEIGHTS if name in top), None)
    if weights is None or CONFIG not in top:
        return None
    taken = [top[CONFIG], top[weights]]
    if weights.endswith(".index.json"):
        stem, suffix = weights.removesuffix(".index.json").split(".")
        taken += [
            file
            for name, file in sorted(top.items())
            if name.endswith(suffix)
            and _SHARD.fullmatch(name[len(stem) : -len(suffix) - 1])
            and name.startswith(stem)
        ]
    taken += [file for file in _neighbours(files, taken[0].folder) if file not in taken]
    return Selection(tuple(taken), is_folder=True)


def _meta(files: Sequence[HubFile]) -> Selection | None:
    """Return Meta's own files: shards, their parameters and the tokenizer."""
    for params in files:
        shards = [
            file
            for file in files
            if file.folder == params.folder and _META_SHARD.fullmatch(file.name)
        ]
        if params.name == "params.json" and shards:
            beside = [file for file in _neighbours(files, params.folder) if file != params]
            return Selection((params, *shards, *beside), is_folder=True)
    return None


def _neighbours(files: Iterable[HubFile], folder: PurePosixPath) -> list[HubFile]:
    return [
        file
        for file in files
        if file.folder == folder and any(fnmatchcase(file.name, name) for name in NEIGHBOURS)
    ]


def _weights(files: Iterable[HubFile]) -> list[HubFile]:
    return [file for file in files if file.name.lower().endswith(WEIGHT_SUFFIXES)]
