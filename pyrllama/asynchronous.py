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
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from pyrllama.llama import Llama, load

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.core import Completion, Token
    from pyrllama.llama import TokenStream

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
        opened = await self._open(prompt, settings)
        try:
            while await self.call(_next, opened) is not None:
                pass
            return opened.completion()
        finally:
            await self.call(opened.close)

    async def stream(self, prompt: str | Sequence[int], **settings: Any) -> AsyncIterator[Token]:
        """Yield the tokens of a continuation as they come; see ``Llama.stream``."""
        opened = await self._open(prompt, settings)
        try:
            while (token := await self.call(_next, opened)) is not None:
                yield token
        finally:
            await self.call(opened.close)

    async def embed(self, text: str | Sequence[int]) -> NDArray[np.float32]:
        """Return a vector that stands for a text; see ``Llama.embed``."""
        return await self.call(self.llama.embed, text)

    async def _open(self, prompt: str | Sequence[int], settings: dict[str, Any]) -> TokenStream:
        """Submit a request; if the task is cancelled meanwhile, the request is too."""
        future = self._thread.submit(self.llama.stream, prompt, **settings)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            await self.call(_close, future)  # behind the request, in the same thread
            raise


def _next(stream: TokenStream) -> Token | None:
    """Return the next token, None at the end: StopIteration cannot leave a coroutine."""
    return next(stream, None)


def _close(future: Future[TokenStream]) -> None:
    """Close a stream that was opened for nobody."""
    if future.exception() is None:
        future.result().close()
