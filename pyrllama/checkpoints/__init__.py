"""Checkpoints as their authors published them: Meta, Hugging Face, GGUF and llama2.c.

``open_checkpoint`` recognises each by what the files say of themselves.  All readers map the
files and give one tensor at a time, under GGUF's names and in one order of rows.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pyrllama.checkpoints.mapped import MappedFile
from pyrllama.errors import ModelNotFoundError, RllamaError, SettingError, UnknownFormatError

if TYPE_CHECKING:
    import os

    from pyrllama.checkpoints.base import Checkpoint

_GGUF = b"GGUF"
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the model itself: run `git lfs pull`",
    b"<": "a page of the web, not the model itself: the download went wrong",
    b"lmgg": "a GGML file from before GGUF: convert the original model to GGUF",
    b"fmgg": "a GGML file from before GGUF: convert the original model to GGUF",
    b"tjgg": "a GGML file from before GGUF: convert the original model to GGUF",
}
"""Beginnings of files that people mistake for a model, and what these are."""
_HEAD_BYTES = 32
_MOST_NAMED = 8


def open_checkpoint(
    path: str | os.PathLike[str], param_path: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Open a model's file or folder with the reader for its format.

    ``param_path`` names the ``params.json`` of a Meta checkpoint where it is not beside the
    weights; the other formats carry their own parameters and refuse it.

    Raises ``ModelNotFoundError`` where there is nothing, or no weights; ``UnknownFormatError``
    for a file of another kind; ``SettingError`` for a needless ``param_path``; and what the
    reader raises.
    """
    path = Path(path)
    params = None if param_path is None else Path(param_path)
    if _is_folder(path):
        return _open_folder(path, params)
    return _open_file(path, params)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError as error:
        raise ModelNotFoundError(path, "there is no such file or folder") from error
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(path, f"the path cannot be looked at: {error}") from error


def _open_file(path: Path, params: Path | None) -> Checkpoint:
    from pyrllama.checkpoints import llama2c, meta  # noqa: PLC0415 - start-up time

    head = _head(path)
    if head.startswith(_GGUF):
        return _open_gguf(path, params)
    if llama2c.looks_like(path):
        _refuse_params(params, "llama2.c")
        return llama2c.Llama2cCheckpoint(path)
    if meta.looks_like(path):
        return meta.MetaCheckpoint(path, params)
    for beginning, what in _FOREIGN.items():
        if head.startswith(beginning):
            raise UnknownFormatError(path, f"this is {what}")
    raise UnknownFormatError(
        path,
        f"the file is neither GGUF, llama2.c (whose header must agree with the file's size) nor "
        f"a PyTorch zip; it starts with {head[:8]!r}",
    )


def _open_folder(path: Path, params: Path | None) -> Checkpoint:
    from pyrllama.checkpoints import huggingface, meta  # noqa: PLC0415 - start-up time

    if meta.looks_like(path):
        return meta.MetaCheckpoint(path, params)
    if huggingface.looks_like(path):
        _refuse_params(params, "Hugging Face")
        return huggingface.HuggingFaceCheckpoint(path)
    entries = _entries(path)
    gguf_files = [entry for entry in entries if _is_gguf(entry)]
    if len(gguf_files) == 1:
        return _open_gguf(gguf_files[0], params)
    if gguf_files:
        raise ModelNotFoundError(
            path, f"the folder has several GGUF files; name one of {_listed(gguf_files)}"
        )
    raise ModelNotFoundError(
        path,
        f"no weights in this folder: looked for consolidated.*.pth with params.json (Meta), "
        f"config.json with *.safetensors or pytorch_model*.bin (Hugging Face) and a GGUF file; "
        f"found {_listed(entries) or 'nothing'}",
    )


def _open_gguf(path: Path, params: Path | None) -> Checkpoint:
    from pyrllama.checkpoints.gguf import GgufCheckpoint  # noqa: PLC0415 - start-up time

    _refuse_params(params, "GGUF")
    return GgufCheckpoint(path)


def _refuse_params(params: Path | None, format_: str) -> None:
    if params is not None:
        raise SettingError(
            "param_path", str(params), f"left out: a {format_} checkpoint has its own"
        )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ModelNotFoundError(folder, f"the folder cannot be read: {error}") from error


def _is_gguf(path: Path) -> bool:
    """Tell whether a file of a folder starts like GGUF, and not like a text about it."""
    try:
        head = _head(path)
    except RllamaError:  # empty, unreadable, or no regular file
        return False
    return head.startswith(_GGUF) and 0 in head[4:8]  # the version number has zero bytes


def _head(path: Path) -> bytes:
    """Return the first bytes of a file; raises what ``MappedFile`` raises."""
    file = MappedFile(path)
    head = file.view(0, min(file.size, _HEAD_BYTES)).tobytes()
    file.close()
    return head


def _listed(paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:_MOST_NAMED])
    rest = len(paths) - _MOST_NAMED
    return f"{names} and {rest} more" if rest > 0 else names
