"""The public API for programs: load a model, then generate, stream, tokenize or score.

>>> import pyrllama
>>> with pyrllama.load("LLaMA/7B", quantize="q4_0") as llama:       # doctest: +SKIP
...     for token in llama.stream("The meaning of life is", top_k=40):
...         print(token.text, end="", flush=True)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from pyrllama.chat.api import Chat
from pyrllama.chat.sources import Templates
from pyrllama.core import Completion
from pyrllama.engine import Engine
from pyrllama.errors import PromptError, SettingError
from pyrllama.loading import (
    DEFAULT_MAX_SEQ_LEN,
    Backend,
    context_length,
    load_model,
    local_path,
    parse_kv_type,
    parse_weight_type,
)
from pyrllama.measures import Measures
from pyrllama.prompt_store import DEFAULT_BYTES
from pyrllama.request_maker import GenerationSettings, RequestMaker
from pyrllama.reuse import open_prefixes, open_speculation
from pyrllama.sampling.sampler import SEED_BITS
from pyrllama.token_stream import TokenStream

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.backend import Model
    from pyrllama.core import Completion, Sampling
    from pyrllama.loading import Progress
    from pyrllama.memory import MemoryNeed
    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.plan import Plan
    from pyrllama.prefix import PrefixCache
    from pyrllama.speculation import Speculation
    from pyrllama.tensors import TensorType
    from pyrllama.tokenizer import Tokenizer


class Llama(Chat, Measures):
    """A loaded model with its tokenizer; a context manager that frees both.

    Texts may be streamed side by side, but only from one thread.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        max_seq_len: int,
        templates: Templates | None = None,
        *,
        model_settings: Mapping[str, Any] | None = None,
        prefixes: PrefixCache | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.config: ModelConfig = model.config
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.templates = templates
        self.model = model
        # A generated BOS is where training began the next text, so it ends this one too.
        bos = frozenset() if tokenizer.bos_id is None else frozenset({tokenizer.bos_id})
        self._stop_ids = tokenizer.stop_ids | bos
        self.model_settings: Mapping[str, Any] = model_settings or {}
        """Settings of the sampler that the model's own files give."""
        self._requests = RequestMaker(
            tokenizer, self._stop_ids, model.config.vocab_size, self.model_settings
        )
        self._engine = Engine(
            model, max_seq_len, self._stop_ids, prefixes=prefixes, speculation=speculation
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is running and free the weights and the cache."""
        self._engine.close()

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> Completion:
        """Generate a whole continuation of a text, or of token ids taken as they are.

        ``settings`` are fields of ``Sampling`` and those of ``GenerationSettings``.  What they
        leave open is what ``sampling`` says; without it, what the model's own files say
        (``model_settings``), and then the defaults of ``Sampling``.  A text gets the BOS token
        before it if the model is trained so; an empty one is BOS alone.  Raises ``PromptError``,
        ``PromptTooLongError``, ``SettingError`` or ``StructureError`` before any work.
        """
        stream = self.stream(prompt, sampling=sampling, max_tokens=max_tokens, **settings)
        for _ in stream:
            pass
        return stream.completion()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> TokenStream:
        """Yield the tokens of a continuation as they come; see ``generate``."""
        asked = self._requests.make(self._tokens_of(prompt), sampling, max_tokens, settings)
        return TokenStream(self._engine, self.tokenizer, self._stop_ids, asked)

    def streams(
        self,
        prompt: str | Sequence[int],
        n: int,
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> list[TokenStream]:
        """Return ``n`` continuations of one prompt, which advance side by side; see ``generate``.

        Their seeds are a seed and those that follow it, so that each can be had again alone.
        """
        if n < 1:
            raise SettingError("n", n, "a whole number from 1 upwards")
        seed = settings.pop("seed", None if sampling is None else sampling.seed)
        first = secrets.randbits(SEED_BITS) if seed is None else seed
        streams = []
        for i in range(n):
            settings["seed"] = (first + i) % 2**64 if i else first
            streams.append(
                self.stream(prompt, sampling=sampling, max_tokens=max_tokens, **settings)
            )
        return streams

    def tokenize(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Return the token ids of a text; ``bos`` None adds BOS as the model expects it."""
        return self.tokenizer.encode(text, bos=self.tokenizer.add_bos if bos is None else bos)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; broken UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode(ids)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits that follow each of ``tokens``: ``(len(tokens), vocab)`` float32."""
        return self._engine.logits([int(token) for token in tokens])

    def embed(self, text: str | Sequence[int]) -> NDArray[np.float32]:
        """Return a vector of length 1 that stands for a text: ``(dim,)`` float32.

        It is the mean of all tokens' states behind the last layer and its norm; see
        ``pyrllama.embedding``.  Raises ``BackendError`` where the backend does not give them.
        """
        from pyrllama.embedding import embed  # noqa: PLC0415

        return embed(self._engine, self._tokens_of(text))

    def save_state(self, path: str | os.PathLike[str], tokens: Sequence[int]) -> None:
        """Save a text, such as a completion's ``prompt_tokens + tokens``, with its KV cache.

        Raises ``StateError`` if the file cannot be written; see ``pyrllama.state_file``.
        """
        from pyrllama.state_file import save_state  # noqa: PLC0415

        save_state(Path(path), self._engine, tokens)

    def load_state(self, path: str | os.PathLike[str]) -> tuple[int, ...]:
        """Return the tokens of a saved text; a prompt that begins with them reuses its cache.

        Raises ``StateError`` for a file that is damaged or another model's.
        """
        from pyrllama.state_file import load_state  # noqa: PLC0415

        return load_state(Path(path), self._engine)

    def _tokens_of(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the ids of a text, or those given; of nothing, BOS."""
        if isinstance(prompt, str):
            return self.tokenize(prompt) or self._bos()
        return [int(token) for token in prompt] or self._bos()

    def _bos(self) -> list[int]:
        if self.tokenizer.bos_id is None:
            raise PromptError(
                "the prompt is empty, and this model has no BOS token to start from; "
                "give at least one word"
            )
        return [self.tokenizer.bos_id]


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
