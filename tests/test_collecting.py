"""Collecting importance over a text: what is read, what is counted, and what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_model import ByteTokenizer, FakeModel
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

import pyrllama
from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.errors import BackendError, PromptError
from pyrllama.importance import read_importance
from pyrllama.llama import Llama
from pyrllama.model_config import Experts
from pyrllama.models.llama import OUTPUT, TOKEN_EMBEDDING
from pyrllama.reference.backend import ReferenceBackend
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from support.tiny_models import Weights

    from pyrllama.collecting import Collection
    from pyrllama.core import Batch
    from pyrllama.model_config import ModelConfig

CONFIG = tiny_config(vocab_size=258)
WEIGHTS = random_weights(CONFIG, seed=1)
TEXT = "Once upon a time there was a little dog. He had a red ball."


class Watched(ReferenceBackend):
    """A reference that remembers its batches."""

    def __init__(self, config: ModelConfig = CONFIG, weights: Weights = WEIGHTS) -> None:
        super().__init__(MemoryCheckpoint(config, weights), 64)
        self.batches: list[Batch] = []

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        self.batches.append(batch)
        return super().forward(batch)


def llama_of(model: ReferenceBackend | FakeModel, *, add_bos: bool = True) -> Llama:
    return Llama(model, ByteTokenizer(add_bos=add_bos), max_seq_len=64)


@pytest.mark.parametrize("add_bos", [True, False])
def test_every_token_of_every_chunk_is_read_once(add_bos: bool) -> None:
    model = Watched()
    llama = llama_of(model, add_bos=add_bos)
    found = llama.collect_importance(TEXT, context=16)
    tokens = llama.tokenize(TEXT)
    read = [chunk.tokens for batch in model.batches for chunk in batch.chunks]
    assert [len(chunk) for chunk in read] == [16, 16, 16]
    first = [tokens[0], llama.tokenizer.bos_id if add_bos else tokens[16]]
    assert [read[0][0], read[1][0]] == first
    assert list(read[1][1:]) == tokens[17:32]
    assert (found.chunks, found.tokens) == (3, 48)
    assert {chunk.outputs for batch in model.batches for chunk in batch.chunks} == {0}


def test_the_sums_are_those_of_the_passes() -> None:
    model = Watched()
    found = llama_of(model).collect_importance(TEXT, context=16, chunks=2)
    assert len(model.batches) == 2
    again = Watched()
    with again.input_squares() as expected:
        for batch in model.batches:
            again.forward(batch)
    assert set(found.squares.sums) == set(expected.sums) - {OUTPUT}
    assert len(found.squares.sums) == 7 * CONFIG.n_layers
    for name, sums in found.squares.sums.items():
        np.testing.assert_array_equal(sums, expected.sums[name])


def test_the_output_counts_where_it_is_wanted() -> None:
    found = llama_of(Watched()).collect_importance(TEXT, context=16, output=True)
    assert found.squares.sums[OUTPUT].all()
    # Normalised rows have a mean square of 1 but for the weights of the norm.
    mean = found.squares.sums[OUTPUT] / found.tokens / WEIGHTS["output_norm.weight"] ** 2
    assert mean.mean() == pytest.approx(1, rel=1e-3)
    assert TOKEN_EMBEDDING not in found.squares.sums


def test_every_chunk_yields_what_there_is() -> None:
    seen: list[int] = []
    llama = llama_of(Watched())
    free = llama._engine.free_blocks
    llama.collect_importance(TEXT, context=16, progress=lambda found: seen.append(found.tokens))
    assert seen == [16, 32, 48]
    assert llama._engine.free_blocks == free


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = llama_of(Watched()).collect_importance(TEXT, context=16)
    path = tmp_path / "imatrix.gguf"
    found.write(path, "dog.txt")
    read = read_importance(path)
    assert (read.datasets, read.chunks) == (("dog.txt",), 3)
    for name, sums in found.squares.sums.items():
        np.testing.assert_allclose(read.columns[name], sums / 48, rtol=1e-6)
        assert read.of(TensorInfo(name, WEIGHTS[name].shape, TensorType.F32)) is not None
    file = GgufFile(path)
    assert dict(file.metadata) | {"imatrix.datasets": ()} == {
        "general.type": "imatrix",
        "imatrix.datasets": (),
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 16,
    }
    assert list(file.tensors)[:2] == ["blk.0.attn_k.weight.in_sum2", "blk.0.attn_k.weight.counts"]
    assert file.tensors["blk.0.attn_k.weight.in_sum2"].shape == (64,)
    assert file.data("blk.0.attn_k.weight.counts").view("<f4").tolist() == [[48.0]]
    file.close()


def test_experts_are_counted_by_their_own_tokens(tmp_path: Path) -> None:
    config = tiny_config(vocab_size=258, experts=Experts(40, 2))
    weights = random_weights(config, seed=1)
    found = llama_of(Watched(config, weights)).collect_importance(TEXT, context=16)
    tokens = found.squares.tokens
    assert len(tokens) == 3 * config.n_layers
    assert {int(counts.sum()) for counts in tokens.values()} == {2 * 48}
    assert found.n_of_experts == 3 * 40 * config.n_layers
    idle = sum(int((counts == 0).sum()) for counts in tokens.values())
    assert found.n_idle == idle > 0
    path = tmp_path / "imatrix.gguf"
    found.write(path, "dog.txt")
    read = read_importance(path)
    assert len(read.columns) == 8 * config.n_layers
    for name, counts in tokens.items():
        assert read.of(TensorInfo(name, weights[name].shape, TensorType.F32)) is not None
        means, chosen = read.columns[name], counts > 0
        assert (means[~chosen] == 1).all()
        expected = found.squares.sums[name][chosen] / counts[chosen, None]
        np.testing.assert_allclose(means[chosen], expected, rtol=1e-6)
    router = "blk.0.ffn_gate_inp.weight"
    np.testing.assert_allclose(read.columns[router], found.squares.sums[router] / 48, rtol=1e-6)


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(PromptError, match="has 60 tokens, but a measurement at a context of 32"):
        llama_of(Watched()).collect_importance(TEXT, context=32)


def test_a_backend_that_cannot() -> None:
    with pytest.raises(BackendError, match="cannot collect importance; take the one named cpu"):
        llama_of(FakeModel()).collect_importance(TEXT, context=16)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_inputs_that_are_no_numbers(value: float) -> None:
    model = Watched()
    model._weights["blk.1.attn_norm.weight"][3] = value
    with (
        np.errstate(all="ignore"),
        pytest.raises(BackendError, match=r"gives blk\.1\.attn_q\.weight an input that is not"),
    ):
        llama_of(model).collect_importance(TEXT, context=16)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_trained_model(data: Path, backend: str) -> None:
    text = (data / "text" / "tinystories_valid.txt").read_text(encoding="utf-8")[:2000]
    stories = data / "models" / "stories260K.bin"
    found: dict[str, Collection] = {}
    for name in (backend, "reference"):
        with pyrllama.load(stories, backend=name, kv_type="f32") as llama:
            found[name] = llama.collect_importance(text, context=128, chunks=2)
    for matrix, sums in found["reference"].squares.sums.items():
        np.testing.assert_allclose(found[backend].squares.sums[matrix], sums, rtol=1e-3)
