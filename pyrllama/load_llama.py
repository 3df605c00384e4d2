"""From the name of a model to a ``Llama``: its tokenizer, weights and cache put together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyrllama.cache_size import wanted_tokens
from pyrllama.chat.sources import Templates
from pyrllama.llama import Llama
from pyrllama.loading import (
    DEFAULT_MAX_SEQ_LEN,
    Backend,
    context_length,
    load_model,
    local_path,
    parse_kv_type,
    parse_weight_type,
)
from pyrllama.prompt_store import DEFAULT_BYTES
from pyrllama.reuse import open_prefixes, open_speculation

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from pyrllama.loading import Progress
    from pyrllama.memory import MemoryNeed
    from pyrllama.opencl.plan import Plan
    from pyrllama.tensors import TensorType


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    tokenizer_path: str | os.PathLike[str] | None = None,
    param_path: str | os.PathLike[str] | None = None,
    quantize: str | TensorType | None = None,
    kv_type: str | TensorType = "f16",
    max_seq_len: int | None = None,
    threads: int | None = None,
    backend: str = Backend.CPU,
    progress: Progress | None = None,
    check_memory: bool = True,
    on_memory: Callable[[MemoryNeed | Plan], None] | None = None,
    opencl_devices: Sequence[int] | None = None,
    gpu_share: float | None = None,
    prompt_cache: str | os.PathLike[str] | None = None,
    prompt_cache_bytes: int = DEFAULT_BYTES,
    lookup: bool = False,
    draft_model: str | os.PathLike[str] | None = None,
    on_note: Callable[[str], None] | None = None,
    usual_seq_len: int = DEFAULT_MAX_SEQ_LEN,
    texts: int = 1,
    text_tokens: int | None = None,
) -> Llama:
    """Load a checkpoint, a file or a folder in any format that is read, and its tokenizer.

    None is the small model in this package, which writes children's stories.  A path that
    starts with ``hf:`` is a model on the Hugging Face hub, ``hf:OWNER/REPO[:FILE or
    quantisation]``, which is fetched unless it is in the cache.

    The tokenizer and ``params.json`` are found beside the weights when they are not given.
    ``quantize`` names the type to convert the weights to (a key of ``WEIGHT_TYPES``); None
    keeps the checkpoint's own.  ``kv_type`` is that of the KV cache: ``"f16"``, ``"f32"``,
    which takes twice the memory and rounds nothing, or ``"q8_0"``, which takes half of it.
    ``max_seq_len`` counts prompt and continuation together, by default ``usual_seq_len`` or
    the model's whole context if that is less.
    ``texts`` is how many of one beginning are to be written side by side, each with
    ``text_tokens`` new tokens at most, None for as many as the context has: the KV cache gets
    room for them as far as memory is free (see ``Llama.most_streams``).
    ``on_memory`` is told, before a weight is read, how much memory the model needs;
    ``check_memory`` refuses one that cannot fit into what is free.

    With the backend ``"opencl"``, ``opencl_devices`` are the numbers of the devices to use, by
    default one (see ``pyrllama.opencl.choose_devices``), and ``gpu_share`` is the share of the
    layers that they compute, from 0 to 1, by default as many as fit; the CPU does the others.

    ``prompt_cache`` names a folder in which prompts of at least 256 tokens are kept for later
    runs, ``prompt_cache_bytes`` bounds its size, and ``on_note`` is told what it could not do.
    ``lookup`` drafts tokens from what the text repeats, ``draft_model`` with a smaller model of
    the same vocabulary; several are then checked in one step, and the text stays the same.

    Raises ``SettingError``, ``CheckpointError`` and its kinds, ``TokenizerError``,
    ``NotEnoughMemoryError``, ``BackendError`` or a kind of ``HubError``.
    """
    from pyrllama.checkpoints import open_checkpoint  # noqa: PLC0415
    from pyrllama.tokenizer import (  # noqa: PLC0415
        check_tokenizer,
        find_tokenizer,
        load_tokenizer,
    )

    converted, cached = parse_weight_type(quantize), parse_kv_type(kv_type)
    path = local_path(path, progress=progress is not None)
    with open_checkpoint(path, _optional(param_path)) as checkpoint:
        config = checkpoint.config
        length = context_length(config, max_seq_len, usual_seq_len)
        file = find_tokenizer(path, _optional(tokenizer_path), config.vocab_size)
        tokenizer = load_tokenizer(file, checkpoint.metadata if file == path else None)
        check_tokenizer(tokenizer, config.vocab_size, file)
        model = load_model(
            checkpoint,
            backend=backend,
            weight_type=converted,
            kv_type=cached,
            max_seq_len=length,
            cache_tokens=wanted_tokens(length, texts, text_tokens),
            threads=threads,
            progress=progress,
            check_memory=check_memory,
            on_memory=on_memory,
            opencl_devices=opencl_devices,
            gpu_share=gpu_share,
        )
        try:
            prefixes = open_prefixes(
                model,
                checkpoint,
                converted,
                _optional(prompt_cache),
                prompt_cache_bytes,
                on_note,
                max_seq_len=length,
            )
            speculation = open_speculation(
                config, tokenizer, length, backend, threads, _optional(draft_model), lookup=lookup
            )
        except BaseException:
            model.close()
            raise
        settings = checkpoint.sampling_settings()
        templates = Templates(path, checkpoint.metadata, None if file == path else file)
    return Llama(
        model,
        tokenizer,
        length,
        templates,
        model_settings=settings,
        prefixes=prefixes,
        speculation=speculation,
    )


def _optional(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
