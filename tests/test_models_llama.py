"""The table of tensors, the checks on a config, and the RoPE frequencies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_models import tiny_config

from pyrllama.errors import CorruptFileError, TensorError, UnsupportedModelError
from pyrllama.model_config import Llama3Rope, RopeScaling
from pyrllama.models.llama import (
    OPTIONAL,
    check_config,
    check_tensors,
    expected_tensors,
    n_parameters,
)
from pyrllama.models.rope import rope_frequencies, rope_table
from pyrllama.tensors import TensorInfo, TensorType

PATH = Path("folder") / "model.gguf"
LLAMA_7B = tiny_config(
    vocab_size=32000, dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, ffn_dim=11008
)
LLAMA_3_2_1B = tiny_config(
    vocab_size=128256, dim=2048, n_layers=16, n_heads=32, n_kv_heads=8, head_dim=64, ffn_dim=8192
)


def infos(config: Any) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, shape, TensorType.F32)
        for name, shape in expected_tensors(config).items()
    }


def test_expected_tensors() -> None:
    shapes = expected_tensors(tiny_config(head_dim=32))
    assert len(shapes) == 4 + 2 * 9
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (128, 64)
    assert shapes["output_norm.weight"] == shapes["blk.1.attn_norm.weight"] == (64,)
    assert shapes["rope_freqs.weight"] == (16,)
    assert shapes["blk.0.attn_q.weight"] == (128, 64)
    assert shapes["blk.0.attn_k.weight"] == shapes["blk.0.attn_v.weight"] == (64, 64)
    assert shapes["blk.1.attn_output.weight"] == (64, 128)
    assert shapes["blk.1.ffn_norm.weight"] == (64,)
    assert shapes["blk.0.ffn_gate.weight"] == shapes["blk.0.ffn_up.weight"] == (96, 64)
    assert shapes["blk.0.ffn_down.weight"] == (64, 96)


def test_n_parameters_of_published_models() -> None:
    assert n_parameters(LLAMA_7B) == 6_738_415_616
    assert n_parameters(LLAMA_3_2_1B, tied=True) == 1_235_814_400


def test_a_complete_model_passes_with_and_without_what_it_may_lack() -> None:
    config = tiny_config(rope_scaling=Llama3Rope())
    tensors = infos(config)
    check_tensors(PATH, config, tensors)
    needed = {name: info for name, info in tensors.items() if name not in OPTIONAL}
    check_tensors(PATH, config, needed)
    old = "blk.0.attn_rot_embd.weight"
    check_tensors(PATH, config, needed | {old: TensorInfo(old, (8,), TensorType.F32)})


def test_missing_tensors_are_named() -> None:
    config = tiny_config()
    tensors = infos(config)
    for name in [name for name in tensors if name.startswith("blk.1.")]:
        del tensors[name]
    with pytest.raises(TensorError) as error:
        check_tensors(PATH, config, tensors)
    assert str(error.value) == (
        f"{PATH}: the model needs blk.1.attn_norm.weight, blk.1.attn_q.weight, "
        "blk.1.attn_k.weight and 6 more, but the checkpoint has no such tensor"
    )


def test_a_wrong_shape_is_named_with_the_right_one() -> None:
    config = tiny_config()
    tensors = infos(config)
    name = "blk.0.ffn_down.weight"
    tensors[name] = TensorInfo(name, (96, 64), TensorType.F32)
    with pytest.raises(TensorError) as error:
        check_tensors(PATH, config, tensors)
    assert str(error.value) == (
        f"{PATH}: has {name} of shape (96, 64) where the model says (64, 96); "
        "the weights and the configuration do not belong together"
    )


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.2.attn_q.weight", "other"])
def test_a_tensor_that_would_be_ignored_is_an_error(name: str) -> None:
    config = tiny_config()
    tensors = infos(config) | {name: TensorInfo(name, (64,), TensorType.F32)}
    with pytest.raises(UnsupportedModelError, match=f"has {name}, which the llama model"):
        check_tensors(PATH, config, tensors)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", 1 << 40),
        ("dim", -1),
        ("dim", 1 << 31),
        ("n_layers", 0),
        ("n_layers", 1 << 30),
        ("n_heads", 0),
        ("n_kv_heads", 0),
        ("n_kv_heads", 3),
        ("head_dim", 15),
        ("head_dim", 0),
        ("ffn_dim", -5),
        ("context_length", 0),
        ("norm_eps", 0.0),
        ("norm_eps", math.nan),
        ("norm_eps", math.inf),
        ("rope_theta", -1.0),
        ("rope_theta", math.inf),
    ],
)
def test_an_impossible_config_is_an_error_that_names_the_key(key: str, value: float) -> None:
    config = tiny_config(**{key: value})
    with pytest.raises(CorruptFileError, match=rf"model\.gguf: .*\b{key}\b.*{value}"):
        check_config(PATH, config)
    with pytest.raises(CorruptFileError, match=key):
        check_tensors(PATH, config, {})


@pytest.mark.parametrize(
    ("scaling", "key"),
    [
        (Llama3Rope(factor=0.0), "factor"),
        (Llama3Rope(factor=math.nan), "factor"),
        (Llama3Rope(low_freq_factor=-1.0), "low_freq_factor"),
        (Llama3Rope(low_freq_factor=4.0), "low_freq_factor"),
        (Llama3Rope(high_freq_factor=math.inf), "high_freq_factor"),
        (Llama3Rope(original_context=0), "original_context"),
    ],
)
def test_an_impossible_rope_scaling_is_an_error(scaling: RopeScaling, key: str) -> None:
    with pytest.raises(CorruptFileError, match=rf"rope_scaling\.{key}"):
        check_config(PATH, tiny_config(rope_scaling=scaling))


def test_rope_frequencies_fall_from_1_by_a_power_of_theta() -> None:
    frequencies = rope_frequencies(tiny_config(head_dim=8, rope_theta=10000.0))
    assert frequencies.dtype == np.float64
    np.testing.assert_allclose(frequencies, [1, 1e-1, 1e-2, 1e-3], rtol=1e-12)


def test_llama_3_1_scaling_keeps_fast_pairs_slows_slow_ones_and_blends_between() -> None:
    plain = tiny_config(head_dim=128, rope_theta=500000.0)
    scaled = tiny_config(head_dim=128, rope_theta=500000.0, rope_scaling=Llama3Rope())
    kept = rope_frequencies(scaled) / rope_frequencies(plain)
    wavelengths = 2 * math.pi / rope_frequencies(plain)
    for share, wavelength in zip(kept, wavelengths, strict=True):
        if wavelength < 8192 / 4:
            assert share == 1.0
        elif wavelength > 8192:
            assert share == pytest.approx(1 / 8)
        else:
            blend = (8192 / wavelength - 1) / (4 - 1)
            assert share == pytest.approx((1 - blend) / 8 + blend)
    assert {1.0, 0.125} < set(kept.round(12))


def test_stored_factors_divide_the_frequencies_in_place_of_scaling() -> None:
    config = tiny_config(head_dim=8, rope_scaling=Llama3Rope())
    factors = np.array([1, 2, 4, 8], np.float32)
    frequencies = rope_frequencies(config, factors)
    np.testing.assert_allclose(frequencies, [1, 0.05, 0.0025, 0.000125], rtol=1e-12)


@pytest.mark.parametrize("bad", [[1, 2, 3], [1, 2, 3, 0], [1, 2, 3, math.nan], [1, 2, -3, 4]])
def test_bad_stored_factors_are_an_error(bad: list[float]) -> None:
    with pytest.raises(TensorError, match=r"rope_freqs\.weight: does not hold 4 finite numbers"):
        rope_frequencies(tiny_config(head_dim=8), np.array(bad, np.float32))


def test_rope_table_is_exact_at_distant_positions() -> None:
    table = rope_table(tiny_config(head_dim=4, rope_theta=100.0), 100_001)
    assert table.shape == (100_001, 2, 2)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[0], [[1, 0], [1, 0]])
    position = 100_000
    expected = [[math.cos(a), math.sin(a)] for a in (position, position * 0.1)]
    np.testing.assert_allclose(table[position], expected, atol=1e-7)
