"""The public API for asyncio: the same calls, each run in the one thread that owns the model.

>>> async with await pyrllama.AsyncLlama.load("LLaMA/7B") as llama:         # doctest: +SKIP
...     async for token in llama.stream("The meaning of life is"):
...         print(token.text, end="", flush=True)

Texts that are asked for at the same time go through the model side by side, in one batch.  A
task that is cancelled ends its text after the step that is running.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from pyrllama.load_llama import load

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.chat.answer import Answer
    from pyrllama.core import Completion, Token
    from pyrllama.llama import Llama
    from pyrllama.token_stream import TokenStream

    Stream = TokenStream | Answer

P = ParamSpec("P")
T = TypeVar("T")


class AsyncLlama:
    """A ``Llama`` for asyncio; an asynchronous context manager that frees it."""

    def __init__(self, llama: Llama) -> None:
        self.llama = llama
        """The model; call it only through ``call``."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llama")

    @classmethod
    async def load(cls, path: str | os.PathLike[str] | None = None, **settings: Any) -> Self:
        """Load a model without blocking the event loop; see ``pyrllama.load``."""
        loop = asyncio.get_running_loop()
        return cls(await loop.run_in_executor(None, partial(load, path, **settings)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is running and free the model."""
        await self.call(self.llama.close)
        self._thread.shutdown()

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a method of the ``Llama``, or what uses it, in its thread.

        Other texts wait meanwhile, and cancelling the task does not stop it.
        """
        return await asyncio.wrap_future(self._thread.submit(function, *args, **kwargs))

    async def generate(self, prompt: str | Sequence[int], **settings: Any) -> Completion:
        """Generate a whole continuation; see ``Llama.generate``."""
        return await self._completion(partial(self.llama.stream, prompt, **settings))

    def stream(self, prompt: str | Sequence[int], **settings: Any) -> AsyncIterator[Token]:
        """Yield the tokens of a continuation as they come; see ``Llama.stream``."""
        return self._tokens(partial(self.llama.stream, prompt, **settings))

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> Completion:
        """Return the answer to the messages of a conversation; see ``Llama.chat``."""
        return await self._completion(partial(self.llama.stream_chat, messages, tools, **settings))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> AsyncIterator[Token]:
        """Yield the tokens of an answer as they come; see ``Llama.chat``."""
        return self._tokens(partial(self.llama.stream_chat, messages, tools, **settings))

    async def embed(self, text: str | Sequence[int]) -> NDArray[np.float32]:
        """Return a vector that stands for a text; see ``Llama.embed``."""
        return await self.call(self.llama.embed, text)

    async def _completion(self, start: Callable[[], Stream]) -> Completion:
        async with self._opened(start) as stream:
            while await self.call(_next, stream) is not None:
                pass
            return stream.completion()

    async def _tokens(self, start: Callable[[], Stream]) -> AsyncIterator[Token]:
        async with self._opened(start) as stream:
            while (token := await self.call(_next, stream)) is not None:
                yield token

    @asynccontextmanager
    async def _opened(self, start: Callable[[], Stream]) -> AsyncIterator[Stream]:
        """Submit a request; if the task is cancelled meanwhile, the request is too."""
        future = self._thread.submit(start)
        try:
            stream = await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            await self.call(_close, future)  # behind the request, in the same thread
            raise
        try:
            yield stream
        finally:
            await self.call(stream.close)


def _next(stream: Stream) -> Token | None:
    """Return the next token, None at the end: StopIteration cannot leave a coroutine."""
    return next(stream, None)


def _close(future: Future[Stream]) -> None:
    """Close a stream that was opened for nobody."""
    if future.exception() is None:
        future.result().close()
