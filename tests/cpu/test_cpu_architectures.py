"""What architectures beside LLaMA have: biases, normed heads, windows, experts, on the CPU."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.cpu_models import cpu_model, reference_of
from support.kernels import EXACT_ISAS, QUANTISED
from support.tiny_models import chunk_of, logits_of, random_weights, tiny_config

from pyrllama.core import Batch
from pyrllama.cpu.mixture import places_of
from pyrllama.cpu.target import chosen
from pyrllama.model_config import Experts, ModelConfig
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from support.tiny_models import Weights

    from pyrllama.cpu.model import CpuModel
    from pyrllama.cpu.target import Isa

CONFIGS = {
    "biases": tiny_config(architecture="qwen2", attention_bias=True, head_dim=20),
    "normed_heads": tiny_config(architecture="qwen3", qk_norm=True, head_dim=20, ffn_dim=160),
    "window_of_a_few": tiny_config(sliding_window=5, vocab_size=101),
    "window_over_parts": tiny_config(sliding_window=300, n_heads=6, n_kv_heads=1, head_dim=24),
    "experts": tiny_config(experts=Experts(5, 2), ffn_dim=72, vocab_size=101),
    "many_experts": tiny_config(
        architecture="qwen3moe", qk_norm=True, experts=Experts(33, 3, normalised=False), ffn_dim=32
    ),
    "one_expert": tiny_config(experts=Experts(1, 1), ffn_dim=33, dim=32),
}
TYPES = (TensorType.F32, TensorType.Q4_0)
N_TOKENS = 620
"""Three parts of positions, of which a window of 300 sees two at a time."""
MAX_SEQ_LEN = 1024


@cache
def weights_of(name: str) -> Weights:
    return random_weights(CONFIGS[name], seed=6, std=0.1)


def tokens_of(config: ModelConfig) -> list[int]:
    tokens: list[int] = np.random.default_rng(7).integers(0, config.vocab_size, N_TOKENS).tolist()
    return tokens


@pytest.fixture(scope="module", params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    chosen_name: str = request.param
    return chosen_name


@pytest.fixture(scope="module", params=EXACT_ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    chosen_isa: Isa = request.param
    return chosen_isa


@pytest.fixture(scope="module", params=TYPES, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> TensorType:
    chosen_kind: TensorType = request.param
    return chosen_kind


@pytest.fixture(scope="module")
def model(name: str, isa: Isa, kind: TensorType) -> Iterator[CpuModel]:
    with cpu_model(
        CONFIGS[name], weights_of(name), isa, kind, threads=2, max_seq_len=MAX_SEQ_LEN
    ) as model:
        yield model


@pytest.fixture(scope="module")
def whole(model: CpuModel) -> NDArray[np.float32]:
    """Return the logits after every token, from as few passes as there can be."""
    return in_chunks(model, [512, N_TOKENS - 512])


def in_chunks(model: CpuModel, sizes: list[int]) -> NDArray[np.float32]:
    tokens, rows, start = tokens_of(model.config), [], 0
    for size in sizes:
        rows.append(model.forward(Batch((chunk_of(tokens[start : start + size], start),))))
        start += size
    return np.concatenate(rows)


def test_logits_equal_the_reference(
    name: str, kind: TensorType, whole: NDArray[np.float32]
) -> None:
    config = CONFIGS[name]
    reference = reference_of(config, weights_of(name), kind, n_blocks=32)
    expected = reference.forward(Batch((chunk_of(tokens_of(config)[:400]),)))
    errors = np.max(np.abs(whole[:400] - expected), axis=1)  # (tokens,)
    tolerance = 0.1 if kind in QUANTISED else 5e-3
    # Where two experts are about as probable, roundings can have the other one chosen.
    assert np.count_nonzero(errors > tolerance) <= (8 if config.experts else 0)
    assert np.median(errors) < tolerance / 4


@pytest.mark.parametrize(
    "sizes", [[1] * 40 + [300, 1, 2, 7, 270], [255, 2, 255, 108], [31, 33, 512, 44]], ids=len
)
def test_a_prompt_in_chunks_equals_the_whole(
    model: CpuModel, whole: NDArray[np.float32], sizes: list[int]
) -> None:
    np.testing.assert_array_equal(in_chunks(model, sizes), whole)


@pytest.mark.parametrize("threads", [1, 5])
def test_the_number_of_threads_does_not_matter(
    name: str, isa: Isa, kind: TensorType, whole: NDArray[np.float32], threads: int
) -> None:
    with cpu_model(
        CONFIGS[name], weights_of(name), isa, kind, threads=threads, max_seq_len=MAX_SEQ_LEN
    ) as model:
        np.testing.assert_array_equal(in_chunks(model, [510, 1, 109]), whole)


def test_sequences_in_one_batch_equal_each_alone(
    model: CpuModel, whole: NDArray[np.float32]
) -> None:
    tokens = tokens_of(model.config)
    model.forward(Batch((chunk_of(tokens[:400], outputs=0),)))
    other = tokens[100:120]
    alone = logits_of_other(model, other)
    together = model.forward(
        Batch((chunk_of(tokens[400:401], 400), chunk_of(other, first_block=20)))
    )
    np.testing.assert_array_equal(together[:1], whole[400:401])
    np.testing.assert_array_equal(together[1:], alone)


def logits_of_other(model: CpuModel, tokens: list[int]) -> NDArray[np.float32]:
    return model.forward(Batch((chunk_of(tokens, first_block=25),)))


def test_a_decoded_token_reads_the_chosen_experts_alone() -> None:
    config = tiny_config(experts=Experts(8, 2), vocab_size=101)
    weights = random_weights(config)
    with cpu_model(config, weights, chosen(), TensorType.F16) as model:
        dense = {name: x for name, x in weights.items() if x.ndim == 2 and "token" not in name}
        router = 4 * 16 * 64 * 2  # in F32, of two layers, rows padded to 16
        read = sum(2 * -(-len(x) // 16) * 16 * 64 for n, x in dense.items() if "inp" not in n)
        expert = 2 * 96 * 64
        layers, matrices, used = 2, 3, 2
        assert model.decode_bytes == read + router + layers * matrices * used * expert


def test_unchosen_experts_may_hold_anything() -> None:
    config = tiny_config(experts=Experts(6, 2))
    weights = random_weights(config)
    for layer in range(config.n_layers):
        router = weights[f"blk.{layer}.ffn_gate_inp.weight"]
        router[2:4] = -router[:2]  # two of these four are always over zero,
        router[4:] = 0.0  # which the others are
    damaged = dict(weights)
    for name, values in weights.items():
        if "_exps" in name:
            damaged[name] = values.copy()
            damaged[name][4:] = np.nan
    results = []
    for tensors in (weights, damaged):
        with cpu_model(config, tensors, chosen(), threads=2) as model:
            several = logits_of(model, range(60))
            single = model.forward(Batch((chunk_of([60], 60),)))
        results.append(np.concatenate([several, single]))
    np.testing.assert_array_equal(results[1], results[0])
    assert np.isfinite(results[0]).all()


@pytest.mark.parametrize(
    ("experts", "n_tokens", "places"),
    [(Experts(8, 2), 1, 2 + 5 * 2), (Experts(8, 2), 512, 1024 + 5 * 8 + 31 * 8)],
)
def test_places_have_room_for_what_products_write(
    experts: Experts, n_tokens: int, places: int
) -> None:
    assert places_of(experts, n_tokens) == places
