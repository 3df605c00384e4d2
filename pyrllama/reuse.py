"""What is set up beside a model so that less is computed: the prompt cache, and speculation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrllama.block_bytes import block_memory
from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import SettingError
from pyrllama.identity import numbers_identity, weights_identity
from pyrllama.loading import load_model, local_path
from pyrllama.model_config import DynamicRope
from pyrllama.prefix import PrefixCache
from pyrllama.prompt_store import PromptStore
from pyrllama.speculation import Speculation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyrllama.backend import Model
    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.model_config import ModelConfig
    from pyrllama.speculation import Drafter
    from pyrllama.tensors import TensorType
    from pyrllama.tokenizer import Tokenizer


def open_prefixes(
    model: Model,
    checkpoint: Checkpoint,
    weight_type: TensorType | None,
    folder: Path | None,
    max_bytes: int,
    on_note: Callable[[str], None] | None,
    *,
    max_seq_len: int,
) -> PrefixCache:
    """Return the blocks of a model's KV cache, with a store on disk where a folder is given.

    Raises ``SettingError`` for a folder that is a file.
    """
    identity = _identity(model, checkpoint, weight_type, max_seq_len)
    memory = block_memory(model)
    if folder is None:
        return PrefixCache(model, identity=identity)
    if folder.exists() and not folder.is_dir():
        raise SettingError("prompt_cache", str(folder), "a folder, or the name of a new one")
    if not identity or memory is None:
        if on_note:
            on_note("prompts are not kept: this backend's KV cache cannot be saved")
        return PrefixCache(model, identity=identity)
    label = {
        "model": str(checkpoint.path.resolve()),
        "weights": weight_type.name if weight_type is not None else "as stored",
        "block_format": memory.block_format,
    }
    block_bytes = model.kv_bytes_per_token * BLOCK_TOKENS
    store = PromptStore(folder, identity, label, block_bytes, max_bytes=max_bytes, on_note=on_note)
    return PrefixCache(model, identity=identity, store=store)


def _identity(
    model: Model, checkpoint: Checkpoint, weight_type: TensorType | None, max_seq_len: int
) -> bytes:
    """Return what stands for the numbers of the cache; nothing where no file tells it."""
    memory, weights = block_memory(model), weights_identity(checkpoint)
    if memory is None or weights is None:
        return b""
    dynamic = isinstance(checkpoint.config.rope_scaling, DynamicRope)
    return numbers_identity(
        weights, weight_type, str(memory.block_format), max_seq_len if dynamic else None
    )


def open_speculation(
    config: ModelConfig,
    tokenizer: Tokenizer,
    max_seq_len: int,
    backend: str,
    threads: int | None,
    draft_model: Path | None,
    *,
    lookup: bool,
) -> Speculation | None:
    """Return what drafts tokens, None if nothing is to.

    Raises ``SettingError`` for both kinds at once, ``TokenizerError`` for a draft model of
    another vocabulary, and as ``load`` does.
    """
    if draft_model is None:
        return Speculation(_lookup()) if lookup else None
    if lookup:
        raise SettingError("lookup", lookup, "left out where a draft model is given")
    drafter = _draft_model(draft_model, config, tokenizer, max_seq_len, backend, threads)
    return Speculation(drafter)


def _lookup() -> Drafter:
    from pyrllama.lookup import PromptLookup  # noqa: PLC0415

    return PromptLookup()


def _draft_model(
    path: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    max_seq_len: int,
    backend: str,
    threads: int | None,
) -> Drafter:
    """Load a smaller model with its own tokenizer, and compare that with the other one."""
    from pyrllama.checkpoints import open_checkpoint  # noqa: PLC0415
    from pyrllama.draft_model import DraftModel, check_same_vocabulary  # noqa: PLC0415
    from pyrllama.tokenizer import find_tokenizer, load_tokenizer  # noqa: PLC0415

    path = local_path(path, progress=False)
    with open_checkpoint(path, None) as checkpoint:
        file = find_tokenizer(path, None, checkpoint.config.vocab_size)
        own = load_tokenizer(file, checkpoint.metadata if file == path else None)
        check_same_vocabulary(tokenizer, own, path)
        model = load_model(
            checkpoint,
            backend=backend,
            weight_type=None,
            max_seq_len=min(max_seq_len, checkpoint.config.context_length),
            threads=threads,
            progress=None,
        )
    return DraftModel(model, config.vocab_size)
