"""The public API for programs: load a model, then generate, stream, tokenize or score.

>>> import pyrllama
>>> with pyrllama.load("LLaMA/7B", quantize="q4_0") as llama:       # doctest: +SKIP
...     for token in llama.stream("The meaning of life is", top_k=40):
...         print(token.text, end="", flush=True)
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict, TypeVar, Unpack

from pyrllama.core import Completion, FinishReason, Request, Sampling, Token
from pyrllama.engine import Engine
from pyrllama.errors import PromptError
from pyrllama.loading import (
    Backend,
    context_length,
    load_model,
    local_path,
    parse_kv_type,
    parse_weight_type,
)
from pyrllama.perplexity import Perplexity, measure
from pyrllama.text_chunks import cut_text

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.collecting import Collection
    from pyrllama.core import ModelConfig, TensorType
    from pyrllama.divergence import Base, Divergence
    from pyrllama.engine import Model
    from pyrllama.loading import Progress
    from pyrllama.memory import MemoryNeed
    from pyrllama.opencl.plan import Plan
    from pyrllama.tokenizer import Tokenizer


_Result = TypeVar("_Result")


class SamplingSettings(TypedDict, total=False):
    """The fields of ``Sampling`` as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None


class TokenStream(Iterator[Token]):
    """Tokens as they are generated; the last one carries the reason of the end.

    Closing the stream, or dropping it, cancels what is left and frees its part of the cache.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, stop_ids: frozenset[int], request: Request
    ) -> None:
        self._engine = engine
        self._stop_ids = stop_ids
        self._n_spelled = tokenizer.vocab_size
        self._generation = engine.submit(request)
        self._detokenizer = tokenizer.stream(request.tokens)
        self._pieces: list[str] = []
        self._cancel = weakref.finalize(self, engine.cancel, self._generation)
        self._cancel.atexit = False

    def __next__(self) -> Token:
        generation = self._generation
        given = len(self._pieces)
        while generation.generated == given:
            if generation.finish is not None:
                raise StopIteration
            self._engine.step()
        token = generation.text[len(generation.request.tokens) + given]
        # Other streams' steps may have advanced this one by several tokens.
        last = given + 1 == generation.generated
        finish = generation.finish if last else None
        # The embedding may be padded beyond the tokenizer's vocabulary.
        silent = token in self._stop_ids or token >= self._n_spelled
        text = "" if silent else self._detokenizer.push(token)
        if finish is not None:
            text += self._detokenizer.flush()
        self._pieces.append(text)
        return Token(token, text, generation.logprobs[given], finish)

    def close(self) -> None:
        """Stop generating; ``completion`` still tells what came so far."""
        self._cancel()

    def completion(self) -> Completion:
        """Sum up the tokens that the stream has given so far."""
        generation, given = self._generation, len(self._pieces)
        return Completion(
            text="".join(self._pieces),
            tokens=generation.tokens[:given],
            logprobs=tuple(generation.logprobs[:given]),
            prompt_tokens=generation.request.tokens,
            finish=generation.finish or FinishReason.CANCELLED,
            timings=generation.timings,
            seed=generation.sampler.seed,
        )


class Llama:
    """A loaded model with its tokenizer; a context manager that frees both.

    Texts may be streamed side by side, but only from one thread.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, max_seq_len: int) -> None:
        self.config: ModelConfig = model.config
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.model = model
        # A generated BOS is where training began the next text, so it ends this one too.
        bos = frozenset() if tokenizer.bos_id is None else frozenset({tokenizer.bos_id})
        self._stop_ids = tokenizer.stop_ids | bos
        self._engine = Engine(model, max_seq_len, self._stop_ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        **settings: Unpack[SamplingSettings],
    ) -> Completion:
        """Generate a whole continuation of a text, or of token ids taken as they are.

        ``settings`` are fields of ``Sampling`` and override those of ``sampling``.  A text
        gets the BOS token before it if the model is trained so; an empty one is BOS alone.
        Raises ``PromptError``, ``PromptTooLongError`` or ``SettingError`` before any work.
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
        **settings: Unpack[SamplingSettings],
    ) -> TokenStream:
        """Yield the tokens of a continuation as they come; see ``generate``."""
        chosen = dataclasses.replace(sampling or Sampling(), **settings)
        tokens = (
            self.tokenize(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        )
        request = Request(tuple(tokens or self._bos()), chosen, max_tokens)
        return TokenStream(self._engine, self.tokenizer, self._stop_ids, request)

    def tokenize(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Return the token ids of a text; ``bos`` None adds BOS as the model expects it."""
        return self.tokenizer.encode(text, bos=self.tokenizer.add_bos if bos is None else bos)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; broken UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode(ids)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits that follow each of ``tokens``: ``(len(tokens), vocab)`` float32."""
        return self._engine.logits([int(token) for token in tokens])

    def perplexity(
        self,
        text: str,
        *,
        context: int | None = None,
        chunks: int | None = None,
        save_logits: str | os.PathLike[str] | None = None,
        progress: Callable[[Perplexity], None] | None = None,
    ) -> Perplexity:
        """Measure how well the model predicts a text; ``pyrllama.perplexity`` has the method.

        ``context`` is by default 512 tokens, or what the model was loaded with if that is
        less; ``chunks`` stops after so many contexts.  ``save_logits`` names a file to write
        for ``divergence``.  ``progress`` is called with the result so far after each chunk.
        Raises ``PromptError`` for a text of less than two contexts.
        """
        chosen = cut_text(self.tokenizer, text, self.max_seq_len, context=context, chunks=chunks)
        if save_logits is None:
            return _last(measure(self._engine, self.tokenizer, chosen), progress)
        from pyrllama.logits_file import saved_logits  # noqa: PLC0415

        with saved_logits(Path(save_logits), chosen, self.config.vocab_size) as tap:
            return _last(measure(self._engine, self.tokenizer, chosen, tap), progress)

    def divergence(
        self,
        text: str | None,
        base: Llama | str | os.PathLike[str],
        *,
        context: int | None = None,
        chunks: int | None = None,
        progress: Callable[[Divergence], None] | None = None,
    ) -> Divergence:
        """Measure how far the model's predictions over a text are from those of ``base``.

        ``base`` is another model of the same vocabulary, or a file of logits that
        ``perplexity`` or llama.cpp saved; for a file, ``text`` None is the text that it is of.
        The rest is as in ``perplexity``; ``pyrllama.divergence`` has the method.  Raises
        ``ComparisonError`` for a base of another vocabulary or text.
        """
        from pyrllama.divergence import (  # noqa: PLC0415
            ModelBase,
            check_vocabularies,
            measure_divergence,
        )
        from pyrllama.logits_file import LogitsFile  # noqa: PLC0415

        with ExitStack() as stack:
            other: Base
            if isinstance(base, Llama):
                other = ModelBase(base._engine, base.tokenizer)
            else:
                other = stack.enter_context(closing(LogitsFile(Path(base))))
            check_vocabularies(self.config.vocab_size, other.vocab_size)
            chosen = other.text(
                self.tokenizer, text, self.max_seq_len, context=context, chunks=chunks
            )
            results = measure_divergence(self._engine, self.tokenizer, chosen, other)
            return _last(results, progress)

    def collect_importance(
        self,
        text: str,
        *,
        context: int | None = None,
        chunks: int | None = None,
        output: bool = False,
        progress: Callable[[Collection], None] | None = None,
    ) -> Collection:
        """Collect the importance of every matrix's columns over a text, for quantising.

        ``output`` is for the vocabulary projection too; the other settings are those of
        ``perplexity``.  ``pyrllama.collecting`` has the method.
        """
        from pyrllama.collecting import collect  # noqa: PLC0415

        chosen = cut_text(self.tokenizer, text, self.max_seq_len, context=context, chunks=chunks)
        return _last(collect(self._engine, chosen, output=output), progress)

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
) -> Llama:
    """Load a checkpoint, a file or a folder in any format that is read, and its tokenizer.

    None is the small model in this package, which writes children's stories.  A path that
    starts with ``hf:`` is a model on the Hugging Face hub, ``hf:OWNER/REPO[:FILE or
    quantisation]``, which is fetched unless it is in the cache.

    The tokenizer and ``params.json`` are found beside the weights when they are not given.
    ``quantize`` names the type to convert the weights to (a key of ``WEIGHT_TYPES``); None
    keeps the checkpoint's own.  ``kv_type`` is that of the KV cache: ``"f16"``, ``"f32"``,
    which takes twice the memory and rounds nothing, or ``"q8_0"``, which takes half of it.
    ``max_seq_len`` counts prompt and continuation together, by default 1024 or the model's
    whole context if that is less.
    ``on_memory`` is told, before a weight is read, how much memory the model needs;
    ``check_memory`` refuses one that cannot fit into what is free.

    With the backend ``"opencl"``, ``opencl_devices`` are the numbers of the devices to use, by
    default one (see ``pyrllama.opencl.choose_devices``), and ``gpu_share`` is the share of the
    layers that they compute, from 0 to 1, by default as many as fit; the CPU does the others.

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
        length = context_length(config, max_seq_len)
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
    return Llama(model, tokenizer, length)


def _last(results: Iterator[_Result], progress: Callable[[_Result], None] | None) -> _Result:
    """Show every result so far and return the last one."""
    result = None
    for result in results:
        if progress:
            progress(result)
    assert result is not None  # noqa: S101 - a text has at least one chunk
    return result


def _optional(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
