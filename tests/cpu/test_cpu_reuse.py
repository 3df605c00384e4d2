"""Blocks as bytes, embeddings and drafts on the CPU: the very bits of a text computed anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.cpu_models import cpu_model
from support.kernels import EXACT_ISAS
from support.tiny_models import chunk_of, logits_of, random_weights, tiny_config

from pyrllama.block_bytes import block_memory
from pyrllama.core import BLOCK_TOKENS, Batch, Request, Sampling
from pyrllama.embedding import embed
from pyrllama.engine import Engine
from pyrllama.errors import BackendError
from pyrllama.lookup import PromptLookup
from pyrllama.prefix import PrefixCache
from pyrllama.prompt_store import PromptStore
from pyrllama.reference.model import ReferenceModel
from pyrllama.speculation import Hits, Speculation
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pyrllama.cpu.model import CpuModel

CONFIG = tiny_config(vocab_size=101, ffn_dim=160)
WEIGHTS = random_weights(CONFIG, seed=4)
TOKENS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 150).tolist()
KV_TYPES = (TensorType.F16, TensorType.F32, TensorType.Q8_0)


@pytest.fixture(scope="module", params=KV_TYPES, ids=lambda kind: kind.name)
def model(request: pytest.FixtureRequest) -> Iterator[CpuModel]:
    with cpu_model(
        CONFIG, WEIGHTS, EXACT_ISAS[0], TensorType.Q4_0, threads=2, max_seq_len=256,
        kv_type=request.param,
    ) as model:  # fmt: skip
        yield model


def generate(
    model: CpuModel, prompt: Sequence[int], prefixes: PrefixCache, drafts: Speculation | None = None
) -> tuple[tuple[int, ...], list[float], int]:
    """Return a text, its logprobs, and how many tokens of the prompt were reused."""
    engine = Engine(model, 256, prefixes=prefixes, speculation=drafts)
    generation = engine.submit(Request(tuple(prompt), Sampling(temperature=0), 40))
    while generation.finish is None:
        engine.step()
    assert generation.reused is not None
    return generation.tokens, generation.logprobs, generation.reused


def test_a_block_comes_back_bit_by_bit(model: CpuModel) -> None:
    whole = logits_of(model, TOKENS[:64])
    blocks = [model.read_block(block) for block in (0, 1)]
    assert [block.nbytes for block in blocks] == [model.kv_bytes_per_token * BLOCK_TOKENS] * 2
    logits_of(model, TOKENS[64:128])
    for block, data in enumerate(blocks):
        model.write_block(block + 4, data)
    chunk = chunk_of(TOKENS[40:64], 40, first_block=4)
    assert np.array_equal(model.forward(Batch((chunk,))), whole[40:])


def test_wrong_blocks_are_refused(model: CpuModel) -> None:
    data = model.read_block(0)
    for block in (-1, model.n_blocks):
        with pytest.raises(BackendError, match="cache blocks must be from 0 to 7"):
            model.read_block(block)
        with pytest.raises(BackendError, match="cache blocks"):
            model.write_block(block, data)
    with pytest.raises(BackendError, match=r"has \d+ bytes, but \d+ are given"):
        model.write_block(0, data[:-1])


def test_the_format_tells_types_and_code_apart(model: CpuModel) -> None:
    assert block_memory(model) is model
    assert model.block_format.startswith("cpu ")
    formats = set()
    for kind in KV_TYPES:
        for isa in (EXACT_ISAS[0], EXACT_ISAS[-1]):
            with cpu_model(CONFIG, WEIGHTS, isa, kv_type=kind) as other:
                formats.add(other.block_format)
    assert len(formats) == len(KV_TYPES) * len({EXACT_ISAS[0], EXACT_ISAS[-1]})


@pytest.mark.parametrize("length", [33, 64, 97, 150])
def test_cached_text_is_uncached_text(model: CpuModel, tmp_path: Path, length: int) -> None:
    prompt = TOKENS[:length]
    alone = generate(model, prompt, PrefixCache(model, reuse=False))
    shared = PrefixCache(model)
    generate(model, [*prompt[: length - 9], 5, 5], shared)
    again = generate(model, prompt, shared)
    assert again == (*alone[:2], length - 9)
    for reused in (0, (length - 1) // BLOCK_TOKENS * BLOCK_TOKENS):
        kept = PromptStore(
            tmp_path, b"i" * 32, {}, model.kv_bytes_per_token * BLOCK_TOKENS, min_tokens=1
        )
        prefixes = PrefixCache(model, store=kept)
        assert generate(model, prompt, prefixes) == (*alone[:2], reused)
        prefixes.close()


class Eager(Speculation):
    """Drafts whatever the text repeats."""

    def _worthwhile(self, kind: int, room: int) -> int:
        self._hits.setdefault(kind, Hits(kind))
        return min(room, 15)


def test_drafts_leave_every_bit_as_it_is(model: CpuModel) -> None:
    prompt = TOKENS[:20] * 3
    alone = generate(model, prompt, PrefixCache(model, reuse=False))
    speculation = Eager(PromptLookup())
    for _ in range(2):
        speculation.record(1.0, 0, 1)
    drafted = generate(model, prompt, PrefixCache(model, reuse=False), speculation)
    assert drafted == alone


def test_an_embedding_is_the_mean_of_the_final_states(model: CpuModel) -> None:
    engine = Engine(model, 256)
    vector = embed(engine, TOKENS)
    assert vector.shape == (CONFIG.dim,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert engine.free_blocks == 8
    with cpu_model(CONFIG, WEIGHTS, EXACT_ISAS[0], TensorType.F32, kv_type=TensorType.F32,
                   max_seq_len=256) as exact:  # fmt: skip
        states = ReferenceModel(CONFIG, WEIGHTS, 8).final_states(Batch((chunk_of(TOKENS),)))
        mean = states.mean(axis=0, dtype=np.float64)
        expected = mean / np.linalg.norm(mean)
        assert embed(Engine(exact, 256), TOKENS) == pytest.approx(expected, abs=1e-4)
