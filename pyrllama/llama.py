"""The public API for programs, once a model is loaded: generate, stream, tokenize or score.

>>> import pyrllama
>>> with pyrllama.load("LLaMA/7B", quantize="q4_0") as llama:       # doctest: +SKIP
...     for token in llama.stream("The meaning of life is", top_k=40):
...         print(token.text, end="", flush=True)
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from pyrllama.cache_size import texts_that_fit
from pyrllama.chat.api import Chat
from pyrllama.core import Completion
from pyrllama.engine import Engine
from pyrllama.errors import PromptError, PromptTooLongError, SettingError
from pyrllama.measures import Measures
from pyrllama.request_maker import GenerationSettings, RequestMaker
from pyrllama.sampling.sampler import SEED_BITS
from pyrllama.token_stream import TokenStream

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.backend import Model
    from pyrllama.chat.sources import Templates
    from pyrllama.core import Completion, Sampling
    from pyrllama.model_config import ModelConfig
    from pyrllama.prefix import PrefixCache
    from pyrllama.speculation import Speculation
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

        They do so as far as the KV cache holds them (``most_streams``).  Their seeds are a seed
        and those that follow it, so that each can be had again alone.
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

    def most_streams(self, prompt: str | Sequence[int], *, max_tokens: int | None = None) -> int:
        """Return how many continuations of a prompt the KV cache holds side by side.

        That is at their full length; where more are asked for, the last ones wait their turn.
        ``load`` gives the cache its room (``texts``).  Raises as ``generate`` does.
        """
        if max_tokens is not None and max_tokens < 1:
            raise SettingError("max_tokens", max_tokens, "a whole number from 1 upwards")
        n_prompt = len(self._tokens_of(prompt))
        room = self.max_seq_len - n_prompt
        if room < 1:
            raise PromptTooLongError(n_prompt, self.max_seq_len)
        new = room if max_tokens is None else min(room, max_tokens)
        return texts_that_fit(self.model.n_blocks, n_prompt, new)

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
