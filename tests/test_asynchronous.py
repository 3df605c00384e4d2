"""The API for asyncio over a fake backend: the same texts, side by side, and cancelled."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from support.fake_model import ByteTokenizer, FakeModel

import pyrllama
from pyrllama.core import FinishReason
from pyrllama.errors import PromptError, SettingError
from pyrllama.llama import Llama


def fake_llama(model: FakeModel | None = None) -> Llama:
    return Llama(model or FakeModel(n_blocks=16), ByteTokenizer(), max_seq_len=64)


def test_generate_and_stream_give_the_text_of_the_plain_api() -> None:
    async def ask() -> tuple[pyrllama.Completion, str]:
        async with pyrllama.AsyncLlama(fake_llama()) as llama:
            done = await llama.generate("Once", temperature=0, max_tokens=9)
            tokens = [token async for token in llama.stream("Once", temperature=0, max_tokens=9)]
            assert tokens[-1].finish is FinishReason.LENGTH
            return done, "".join(token.text for token in tokens)

    done, streamed = asyncio.run(ask())
    plain = fake_llama().generate("Once", temperature=0, max_tokens=9)
    assert done.text == streamed == plain.text
    assert done.tokens == plain.tokens


def test_texts_that_are_asked_for_together_share_steps() -> None:
    model = FakeModel(n_blocks=16)

    async def ask() -> list[str]:
        async with pyrllama.AsyncLlama(fake_llama(model)) as llama:
            asked = [llama.generate(word, temperature=0, max_tokens=20) for word in ("a", "b", "c")]
            return [done.text for done in await asyncio.gather(*asked)]

    texts = asyncio.run(ask())
    alone = [fake_llama().generate(w, temperature=0, max_tokens=20).text for w in ("a", "b", "c")]
    assert texts == alone
    assert max(len(batch.chunks) for batch in model.batches) == 3
    assert len(model.batches) < 30
    assert model.closed


def test_a_cancelled_task_frees_its_part_of_the_cache() -> None:
    async def ask() -> None:
        async with pyrllama.AsyncLlama(fake_llama()) as llama:
            task = asyncio.create_task(llama.generate("Once", temperature=0))
            other = asyncio.create_task(llama.generate("Twice", temperature=0, max_tokens=30))
            async for _ in llama.stream("Thrice", temperature=0, max_tokens=3):
                pass
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await other).finish is FinishReason.LENGTH
            assert not llama.llama._engine.busy
            assert llama.llama._engine.free_blocks == 16

    asyncio.run(ask())


def test_a_task_that_is_cancelled_before_it_began_leaves_nothing() -> None:
    async def ask() -> None:
        async with pyrllama.AsyncLlama(fake_llama()) as llama:
            task = asyncio.create_task(llama.generate("Once", temperature=0))
            await asyncio.sleep(0)  # the request is on its way to the other thread
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not llama.llama._engine.busy

    asyncio.run(ask())


def test_a_stream_that_is_left_early_is_cancelled() -> None:
    async def ask() -> None:
        async with pyrllama.AsyncLlama(fake_llama()) as llama:
            stream = llama.stream("Once", temperature=0)
            assert (await anext(stream)).id > 0
            await stream.aclose()  # type: ignore[attr-defined]
            assert not llama.llama._engine.busy

    asyncio.run(ask())


def test_errors_reach_the_caller() -> None:
    async def ask() -> None:
        async with pyrllama.AsyncLlama(fake_llama()) as llama:
            with pytest.raises(SettingError):
                await llama.generate("Once", temperature=-1)
            with pytest.raises(PromptError):
                await llama.generate([999])
            assert await llama.call(llama.llama.tokenize, "a", bos=False) == [97]

    asyncio.run(ask())


def test_loading_and_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = fake_llama()
    monkeypatch.setattr(llama, "embed", lambda text: np.array([len(text)], np.float32))
    monkeypatch.setattr("pyrllama.asynchronous.load", lambda path, **settings: llama)

    async def ask() -> float:
        async with await pyrllama.AsyncLlama.load("model", kv_type="f32") as loaded:
            return float((await loaded.embed("four"))[0])

    assert asyncio.run(ask()) == 4.0
