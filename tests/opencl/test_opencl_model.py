"""The OpenCL backend's whole forward pass against the reference, transformers and golden texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from support.opencl_models import QUANTISED, each_type, opencl_model, reference_of
from support.stored_models import StoredCheckpoint
from support.tiny_models import (
    GOLDEN,
    chunk_of,
    greedy,
    logits_of,
    random_weights,
    tiny_config,
)
from support.transformers_models import FIXTURES, load_fixture

from pyrllama.checkpoints.llama2c import Llama2cCheckpoint
from pyrllama.core import Batch, Chunk
from pyrllama.errors import BackendError
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.opencl.device import Device
    from pyrllama.opencl.model import OpenClModel

SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"vocab_size": 101},
    "head_20": {"head_dim": 20, "dim": 80, "ffn_dim": 172, "vocab_size": 31},
    "head_80": {"head_dim": 80, "n_heads": 3, "n_kv_heads": 3, "dim": 48, "vocab_size": 17},
    "head_128": {"head_dim": 128, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 160, "n_layers": 3},
    "shared_8": {"n_heads": 8, "n_kv_heads": 1, "head_dim": 8},
}
WEIGHT_STD = 0.05
FLOAT_ROUNDING = 1e-3
"""Different orders of float sums, and a float16 of the cache that falls to the other side."""
TENSOR_ROUNDING = 1e-2
"""Tensor Cores read activations, and weights once they are unpacked, as float16."""
ACTIVATION_ROUNDING = 6e-2
"""When an int8 activation falls on the other side of a tie, it moves by a whole step."""
TOKENS = np.random.default_rng(2).integers(0, 1 << 20, 90)


def one_by_one(model: OpenClModel, tokens: list[int]) -> NDArray[np.float32]:
    steps = [
        model.forward(Batch((chunk_of([token], i, outputs=1),))) for i, token in enumerate(tokens)
    ]
    return np.concatenate(steps)


def batch_rounding(device: Device) -> float:
    return TENSOR_ROUNDING if device.is_nvidia else FLOAT_ROUNDING


def check_against_reference(
    device: Device, kind: TensorType, shape: dict[str, Any], *, tied: bool = False, **changes: Any
) -> None:
    config = tiny_config(**shape)
    weights = random_weights(config, seed=1, tied=tied, std=WEIGHT_STD)
    tokens = (TOKENS[:70] % config.vocab_size).tolist()  # two blocks of the cache, and some
    references = [
        logits_of(reference_of(config, weights, kind, 3, int8=int8), tokens)
        for int8 in (False, True)
    ]
    with opencl_model(device, config, weights, kind, **changes) as model:
        in_batch = np.abs(logits_of(model, tokens) - references[0])
        alone = np.abs(one_by_one(model, tokens) - references[1])
    assert np.max(in_batch) < batch_rounding(device)
    assert np.max(alone) < (ACTIVATION_ROUNDING if kind in QUANTISED else FLOAT_ROUNDING)


@each_type
def test_logits_equal_the_reference(device: Device, kind: TensorType) -> None:
    check_against_reference(device, kind, {})


def test_a_type_without_kernels_is_held_as_q8_0(device: Device) -> None:
    config = tiny_config(dim=256, head_dim=64, n_heads=4, n_kv_heads=2, ffn_dim=256)
    stored = StoredCheckpoint(config, TensorType.IQ3_S, WEIGHT_STD)
    tokens = (TOKENS[:20] % config.vocab_size).tolist()
    expected = logits_of(
        reference_of(config, stored.numbers, TensorType.Q8_0, 1, int8=False), tokens
    )
    with opencl_model(device, config, stored) as model:
        assert np.max(np.abs(logits_of(model, tokens) - expected)) < (
            TENSOR_ROUNDING if device.is_nvidia else FLOAT_ROUNDING
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_equal_the_reference(device: Device, shape: str) -> None:
    check_against_reference(device, TensorType.F16, SHAPES[shape], tied=shape == "tied")


@pytest.mark.parametrize("kind", [TensorType.F16, TensorType.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("n_tokens", [5, 12, 31, 133])
def test_tiles_of_every_width_equal_the_reference(
    device: Device, kind: TensorType, n_tokens: int
) -> None:
    """More rows, columns and tokens than a tile has, none of them whole tiles."""
    config = tiny_config(dim=288, n_heads=3, n_kv_heads=1, head_dim=96, ffn_dim=416, n_layers=1)
    weights = random_weights(config, seed=1, std=WEIGHT_STD)
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, n_tokens).tolist()
    expected = logits_of(reference_of(config, weights, kind, 5, int8=False), tokens)
    with opencl_model(device, config, weights, kind, max_seq_len=160) as model:
        np.testing.assert_allclose(
            logits_of(model, tokens), expected, rtol=0, atol=batch_rounding(device)
        )


@pytest.mark.parametrize(("persistent", "stamped"), [(False, False), (True, False), (True, True)])
def test_one_kernel_and_many_equal_the_reference(
    device: Device, persistent: bool, stamped: bool
) -> None:
    """F16 is the type for which PoCL compiles the one kernel fastest: 20 s of these tests.

    There it runs over a table of products, on NVIDIA's GPUs it has a copy for each of a layer's.
    """
    # No more groups than rows, or stamps would give way to barriers.
    changes: dict[str, Any] = {"stamped": True, "groups": 8} if stamped else {"stamped": False}
    check_against_reference(device, TensorType.F16, {}, persistent=persistent, **changes)


@pytest.mark.parametrize("attention_rows", [0, 16], ids=["singly", "tiles_of_16"])
def test_attention_in_other_tiles_equals_the_reference(device: Device, attention_rows: int) -> None:
    check_against_reference(
        device, TensorType.F16, SHAPES["head_20"], attention_rows=attention_rows
    )


@pytest.mark.parametrize(
    ("folder", "kv_type", "tolerance"),
    [
        (FIXTURES / "grouped_tied", TensorType.F32, 1e-3),
        (FIXTURES / "llama3_rope", TensorType.F16, 2e-2),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_logits_equal_those_of_transformers(
    device: Device, folder: Path, kv_type: TensorType, tolerance: float
) -> None:
    fixture = load_fixture(folder)
    with opencl_model(device, fixture.config, fixture.weights, kv_type=kv_type) as model:
        np.testing.assert_allclose(
            logits_of(model, fixture.tokens), fixture.logits, atol=tolerance, rtol=0
        )


def test_greedy_text_equals_what_llama2_c_expects(device: Device, data: Path) -> None:
    with Llama2cCheckpoint(data / "models" / "stories260K.bin") as checkpoint:
        loading = opencl_model(device, checkpoint.config, checkpoint, max_seq_len=256)
        with loading as model:
            generated = greedy(model, [1], 200)
    tokenizer = SentencePieceProcessor(str(data / "models" / "tok512.model"))
    expected = (GOLDEN / "stories260K.txt").read_text(encoding="utf-8")
    assert tokenizer.decode(generated) == expected


# --- what must not change a bit ---------------------------------------------------------------


def test_results_do_not_change_from_run_to_run(device: Device) -> None:
    config = tiny_config()  # of which the kernels for Q8_0 are built already
    tokens = (TOKENS % config.vocab_size).tolist()
    with opencl_model(device, config, random_weights(config), TensorType.Q8_0) as model:
        whole, alone = logits_of(model, tokens), one_by_one(model, tokens)
        np.testing.assert_array_equal(logits_of(model, tokens), whole)
        np.testing.assert_array_equal(one_by_one(model, tokens), alone)


def test_sequences_side_by_side_and_blocks_in_any_order(device: Device) -> None:
    config = tiny_config(vocab_size=101)
    tokens = (TOKENS % 101).tolist()
    kwargs: dict[str, Any] = {"max_seq_len": 256}
    with opencl_model(device, config, random_weights(config), TensorType.F16, **kwargs) as model:
        whole = logits_of(model, tokens)
        other = tokens[::-1][:40]
        alone = logits_of(model, other)
        model.forward(Batch((Chunk(tuple(tokens[:50]), 0, (7, 2), 0),)))
        together = model.forward(
            Batch((chunk_of(other), Chunk(tuple(tokens[50:]), 50, (7, 2, 5), 40)))
        )
        rounding = batch_rounding(device)
        np.testing.assert_allclose(together[:40], alone, atol=rounding)
        np.testing.assert_allclose(together[40:], whole[50:], atol=rounding)
        decodes = (
            Chunk((tokens[32],), 32, (7, 2), 1),
            chunk_of(tokens[:9], first_block=3, outputs=0),
            chunk_of(tokens[:3], first_block=4, outputs=3),
        )
        logits = model.forward(Batch(decodes))
        np.testing.assert_allclose(logits, whole[[32, 0, 1, 2]], atol=rounding)
        assert model.forward(Batch((chunk_of(tokens[:9], outputs=0),))).shape == (0, 101)


@pytest.mark.parametrize("kv_type", [TensorType.F16, TensorType.F32], ids=str)
def test_a_row_does_not_depend_on_the_tile_it_attends_in(
    device: Device, kv_type: TensorType
) -> None:
    config = tiny_config(**SHAPES["head_20"] | {"vocab_size": 101})
    tokens = (TOKENS % 101).tolist()
    with opencl_model(
        device, config, random_weights(config), max_seq_len=128, kv_type=kv_type, few_tokens=0
    ) as model:
        whole = logits_of(model, tokens)
        other = Chunk(tuple(tokens[:3]), 0, (1,), 0)  # moves all rows behind it in their tiles
        for start, end in ((0, 7), (7, 45), (45, 90)):
            chunk = Chunk(tuple(tokens[start:end]), start, (2, 0, 3), end - start)
            np.testing.assert_array_equal(model.forward(Batch((other, chunk))), whole[start:end])


def test_a_batch_that_does_not_fit_is_refused(device: Device) -> None:
    config = tiny_config()
    with opencl_model(device, config, random_weights(config)) as model:
        for chunk in (
            Chunk((1,), 96, (0, 1, 2, 2)),
            Chunk((128,), 0, (0,)),
            Chunk((-1,), 0, (0,)),
            Chunk((1,), 0, (3,)),
            Chunk((1,), 0, (-1,)),
            Chunk((1,), 0, (0,), 2),
            Chunk((), 0, (0,)),
            Chunk((1,) * 97, 0, (0, 1, 2, 0)),
        ):
            with pytest.raises(BackendError):
                model.forward(Batch((chunk,)))
        assert logits_of(model, [1, 2]).shape == (2, 128)
