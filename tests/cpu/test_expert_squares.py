"""Sums of squares of what experts multiply: each one's own tokens, however they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.cpu_models import cpu_model
from support.kernels import EXACT_ISAS
from support.tiny_models import MemoryCheckpoint, chunk_of, logits_of, random_weights, tiny_config

from pyrllama.core import Batch, InputSquares
from pyrllama.model_config import Experts, ModelConfig
from pyrllama.models.llama import TOKEN_EMBEDDING
from pyrllama.reference.backend import ReferenceBackend
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrllama.cpu.model import CpuModel
    from pyrllama.cpu.target import Isa

CONFIGS = {
    "few": tiny_config(experts=Experts(5, 2), ffn_dim=72, vocab_size=101),
    "many": tiny_config(
        architecture="qwen3moe", qk_norm=True, experts=Experts(33, 3, normalised=False), ffn_dim=32
    ),
    "one": tiny_config(experts=Experts(1, 1), ffn_dim=33, dim=32),
}
N_TOKENS = 75
MAX_SEQ_LEN = 256
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def tokens_of(config: ModelConfig) -> list[int]:
    tokens: list[int] = np.random.default_rng(5).integers(0, config.vocab_size, N_TOKENS).tolist()
    return tokens


def counted(model: CpuModel | ReferenceBackend, sizes: list[int]) -> InputSquares:
    """Return the sums over the tokens, from a pass for every size."""
    tokens, start = tokens_of(model.config), 0
    with model.input_squares() as squares:
        for size in sizes:
            model.forward(Batch((chunk_of(tokens[start : start + size], start),)))
            start += size
    assert start == N_TOKENS
    return squares


def assert_equal(found: InputSquares, expected: InputSquares) -> None:
    assert set(found.sums) == set(expected.sums)
    assert set(found.tokens) == set(expected.tokens)
    for name, sums in expected.sums.items():
        np.testing.assert_array_equal(found.sums[name], sums)
    for name, tokens in expected.tokens.items():
        np.testing.assert_array_equal(found.tokens[name], tokens)


class Watched(ReferenceBackend):
    """A reference that remembers what each matrix has multiplied, that of each expert apart."""

    def __init__(self, config: ModelConfig) -> None:
        weights = random_weights(config, seed=6)
        super().__init__(MemoryCheckpoint(config, weights), MAX_SEQ_LEN)
        self.inputs: dict[tuple[str, int], list[NDArray[np.float32]]] = {}

    def _multiply(self, x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
        name = next(n for n, values in self._weights.items() if np.shares_memory(values, w))
        same = (self._weights[name].reshape(-1, *w.shape) == w).all(axis=(1, 2))
        self.inputs.setdefault((name, int(same.argmax())), []).append(x)
        return super()._multiply(x, w)


@each_config
def test_the_reference_counts_what_each_expert_multiplies(config: ModelConfig) -> None:
    model = Watched(config)
    found = counted(model, [60, 15])
    n_chosen = 0
    for name, tokens in found.tokens.items():
        assert "_exps" in name
        for expert, n in enumerate(tokens):
            rows = model.inputs.get((name, expert), [np.zeros((0, found.sums[name].shape[1]))])
            inputs = np.concatenate(rows).astype(np.float64)
            assert n == len(inputs)
            n_chosen += n
            np.testing.assert_allclose(found.sums[name][expert], (inputs**2).sum(0), rtol=1e-12)
    assert config.experts is not None
    assert n_chosen == 3 * config.n_layers * config.experts.used * N_TOKENS
    for name, sums in found.sums.items():
        if name not in found.tokens:
            inputs = np.concatenate(model.inputs[name, 0]).astype(np.float64)
            np.testing.assert_allclose(sums, (inputs**2).sum(axis=0), rtol=1e-12)


@each_config
@pytest.mark.parametrize("isa", EXACT_ISAS, ids=lambda isa: isa.name)
def test_a_model_counts_what_the_reference_counts(config: ModelConfig, isa: Isa) -> None:
    weights = random_weights(config, seed=6)
    expected = counted(ReferenceBackend(MemoryCheckpoint(config, weights), MAX_SEQ_LEN), [60, 15])
    with cpu_model(
        config, weights, isa, TensorType.F32, threads=2, max_seq_len=MAX_SEQ_LEN,
        kv_type=TensorType.F32,
    ) as model:  # fmt: skip
        found = counted(model, [N_TOKENS])
    assert set(found.sums) == {n for n, w in weights.items() if w.ndim > 1} - {TOKEN_EMBEDDING}
    assert set(found.tokens) == {n for n, w in weights.items() if w.ndim == 3}
    for name, sums in expected.sums.items():
        shape = weights[name].shape
        assert found.sums[name].shape == (*shape[:-2], shape[-1])
        np.testing.assert_allclose(found.sums[name], sums, rtol=1e-3)
    for name, tokens in expected.tokens.items():
        np.testing.assert_array_equal(found.tokens[name], tokens)


@each_config
@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("isa", EXACT_ISAS, ids=lambda isa: isa.name)
def test_neither_cuts_nor_threads_change_a_bit(
    config: ModelConfig, isa: Isa, kind: TensorType
) -> None:
    def model(threads: int):  # type: ignore[no-untyped-def]
        weights = random_weights(config, seed=6)
        return cpu_model(config, weights, isa, kind, threads=threads, max_seq_len=MAX_SEQ_LEN)

    with model(3) as several, model(1) as one:
        plain = logits_of(several, tokens_of(config))
        whole = counted(several, [75])
        for found in (
            counted(one, [75]),
            counted(one, [1] * 75),
            counted(several, [1] * 75),
            counted(several, [31, 1, 1, 42]),
            counted(several, [75]),
        ):
            assert_equal(found, whole)
        with several.input_squares():
            np.testing.assert_array_equal(logits_of(several, tokens_of(config)), plain)
        np.testing.assert_array_equal(logits_of(several, tokens_of(config)), plain)
    assert all(tokens.sum() for tokens in whole.tokens.values())
