from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from gguf import quants as gguf_quants

from pyrllama.errors import SettingError
from pyrllama.quants import (
    READABLE,
    RUNNABLE,
    WRITABLE,
    block_size,
    dequantize,
    quantize,
    quantize_fitted,
    row_bytes,
    runnable_names,
    type_size,
)
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = [
    TensorType.F32, TensorType.F16, TensorType.Q4_0, TensorType.Q8_0, TensorType.BF16
]  # fmt: skip
"""The types with a plain rule for rounding, in the order of their codes."""
READ = sorted(READABLE)
SCALE_OFFSETS = {
    TensorType.Q4_0: (0,),
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_0: (0,),
    TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.IQ4_NL: (0,),
    TensorType.IQ4_XS: (0,),
    TensorType.TQ1_0: (52,),
    TensorType.TQ2_0: (64,),
    TensorType.IQ1_S: (0,),
    TensorType.IQ2_XXS: (0,),
    TensorType.IQ2_XS: (0,),
    TensorType.IQ2_S: (0,),
    TensorType.IQ3_XXS: (0,),
    TensorType.IQ3_S: (0,),
}
"""Where the half-precision numbers of a block are; IQ1_M spreads its own over four words."""
BLOCK_TYPES = [TensorType.Q4_0, TensorType.Q8_0]


def theirs(type_: TensorType) -> Any:
    return gguf.GGMLQuantizationType(int(type_))


def numbers(rows: int, cols: int) -> NDArray[np.float32]:
    """Return rows of magnitudes from 1e-12 to 1e12, some of them zero or all equal."""
    rng = np.random.default_rng(rows * cols)
    x = rng.standard_normal((rows, cols)) * 10.0 ** rng.integers(-12, 13, (rows, 1))
    x[1] = 0.0
    x[2] = -0.0
    x[3] = 2.5
    x[4, ::2] *= -1e-3
    x[5] = rng.choice([-1.5, 1.5], cols)
    x[6] = 0.0
    x[6, 17] = -3.0
    return x.astype(np.float32)


def same_numbers(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Compare bits, but any NaN equals any other."""
    return bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))))


@pytest.mark.parametrize("type_", TensorType)
def test_block_sizes_are_those_of_ggml(type_: TensorType) -> None:
    expected = gguf.GGML_QUANT_SIZES[theirs(type_)]
    if type_ is TensorType.Q8_1:
        expected = (32, 36)  # two half-precision numbers since 2024, where gguf still counts floats
    assert (block_size(type_), type_size(type_)) == expected


def test_row_bytes_counts_whole_blocks() -> None:
    assert row_bytes(TensorType.F32, 5) == 20
    assert row_bytes(TensorType.Q4_0, 64) == 36
    assert row_bytes(TensorType.Q6_K, 4096) == 3360


def test_row_bytes_refuses_half_a_block() -> None:
    with pytest.raises(SettingError, match=r"row length is 48, .* multiple of Q8_0's 32"):
        row_bytes(TensorType.Q8_0, 48)


def test_runnable_names_are_listed() -> None:
    assert RUNNABLE == READABLE
    assert runnable_names().startswith("F32, F16, Q4_0, Q4_1, Q5_0")


@pytest.mark.parametrize("type_", TYPES)
def test_packs_to_the_bits_of_gguf(type_: TensorType) -> None:
    x = numbers(200, 256)
    with np.errstate(over="ignore"):
        expected = gguf_quants.quantize(x, theirs(type_)).view(np.uint8)
    np.testing.assert_array_equal(quantize(type_, x), expected)


@pytest.mark.parametrize("type_", READ)
def test_unpacks_random_bits_as_gguf_does(type_: TensorType) -> None:
    rng = np.random.default_rng(int(type_))
    data = rng.integers(0, 256, (300, row_bytes(type_, 512)), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf_quants.dequantize(data, theirs(type_))
    assert same_numbers(dequantize(type_, data, 512), expected)


def test_every_exponent_of_mxfp4_unpacks_as_gguf_does() -> None:
    data = np.random.default_rng(4).integers(0, 256, (256, 17), dtype=np.uint8)
    data[:, 0] = np.arange(256)
    with np.errstate(all="ignore"):
        expected = gguf_quants.dequantize(data, theirs(TensorType.MXFP4))
    assert same_numbers(dequantize(TensorType.MXFP4, data, 32), expected)


@pytest.mark.parametrize("type_", SCALE_OFFSETS)
@pytest.mark.parametrize(
    "scale", [0.0, -0.0, 1.0, -1.0, 6e-8, -3e-5, 65504.0, np.inf, -np.inf, np.nan]
)
def test_unpacks_every_kind_of_scale_as_gguf_does(type_: TensorType, scale: float) -> None:
    for offset in SCALE_OFFSETS[type_]:
        data = np.random.default_rng(1).integers(0, 256, (8, type_size(type_)), dtype=np.uint8)
        data[:, offset : offset + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        with np.errstate(all="ignore"):
            expected = gguf_quants.dequantize(data, theirs(type_))
        assert same_numbers(dequantize(type_, data, block_size(type_)), expected)


def test_q8_0_layout() -> None:
    x = np.zeros((1, 32), dtype=np.float32)
    x[0, :5] = [127.0, -127.0, 0.5, -0.5, 2.5]
    packed = quantize(TensorType.Q8_0, x)
    assert packed[0, :2].tobytes() == np.float16(1.0).tobytes()
    # Halves go away from zero.
    assert packed[0, 2:8].view(np.int8).tolist() == [127, -127, 1, -1, 3, 0]


def test_q8_0_does_not_lift_the_number_just_under_a_half() -> None:
    x = np.zeros((1, 32), dtype=np.float32)
    x[0, :3] = [127.0, np.nextafter(np.float32(0.5), np.float32(0)), -1.4999999]
    assert quantize(TensorType.Q8_0, x)[0, 2:5].view(np.int8).tolist() == [127, 0, -1]


def test_q4_0_layout() -> None:
    x = np.zeros((1, 32), dtype=np.float32)
    x[0, 0], x[0, 1], x[0, 16] = -8.0, 3.0, 7.0
    packed = quantize(TensorType.Q4_0, x)
    assert packed[0, :2].tobytes() == np.float16(1.0).tobytes()
    assert packed[0, 2:5].tolist() == [15 << 4 | 0, 8 << 4 | 11, 8 << 4 | 8]
    np.testing.assert_array_equal(dequantize(TensorType.Q4_0, packed, 32), x)


def test_q4_0_takes_the_first_of_two_equally_far_numbers() -> None:
    x = np.zeros((2, 32), dtype=np.float32)
    x[0, 3], x[0, 9] = 4.0, -4.0
    x[1, 3], x[1, 9] = -4.0, 4.0
    scales = quantize(TensorType.Q4_0, x)[:, :2].copy().view(np.float16)
    assert scales.ravel().tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("type_", BLOCK_TYPES)
@pytest.mark.parametrize("value", [1e-45, -3e-39, 1e-41])
def test_numbers_too_small_for_a_scale_become_zero(type_: TensorType, value: float) -> None:
    x = np.full((1, 32), value, dtype=np.float32)
    assert not dequantize(type_, quantize(type_, x), 32).any()


@pytest.mark.parametrize("type_", BLOCK_TYPES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_a_number_out_of_range_spoils_its_own_block_alone(type_: TensorType, value: float) -> None:
    x = np.ones((1, 96), dtype=np.float32)
    x[0, 40] = value
    got = dequantize(type_, quantize(type_, x), 96)[0]
    assert not np.isfinite(got[40])
    np.testing.assert_allclose(np.r_[got[:32], got[64:]], 1.0, rtol=1e-3)


@pytest.mark.parametrize(
    ("type_", "limit"), [(TensorType.Q8_0, 1 / 254 + 2**-11), (TensorType.Q4_0, 1 / 8 + 2**-11)]
)
def test_error_stays_under_a_step_and_the_rounding_of_the_scale(
    type_: TensorType, limit: float
) -> None:
    """Q8_0 is off by half a step at most; Q4_0's range lacks +8, which costs a whole one."""
    x = np.random.default_rng(5).standard_normal((64, 128)).astype(np.float32)
    error = np.abs(dequantize(type_, quantize(type_, x), 128) - x).reshape(-1, 32)
    farthest = np.abs(x).reshape(-1, 32).max(axis=1, keepdims=True)
    assert (error <= farthest * limit).all()


def test_f16_overflows_to_infinity() -> None:
    x = np.array([[65519.0, 65520.0, -1e30]], dtype=np.float32)
    got = dequantize(TensorType.F16, quantize(TensorType.F16, x), 3)
    assert got.tolist() == [[65504.0, np.inf, -np.inf]]


def test_bf16_rounds_ties_to_even() -> None:
    ulp = 2.0**-7
    x = np.array([[1 + ulp / 2, 1 + 3 * ulp / 2, 1 + 0.51 * ulp, -1 - ulp / 2]], dtype=np.float32)
    got = dequantize(TensorType.BF16, quantize(TensorType.BF16, x), 4)
    assert got.tolist() == [[1.0, 1 + 2 * ulp, 1 + ulp, -1.0]]


def test_bf16_keeps_nan_and_infinity() -> None:
    bits = [[0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x7F7FFFFF]]
    x = np.array(bits, dtype=np.uint32).view(np.float32)
    got = dequantize(TensorType.BF16, quantize(TensorType.BF16, x), 5)[0]
    assert np.isnan(got[:2]).all()
    assert got[2:].tolist() == [np.inf, -np.inf, np.inf]


@pytest.mark.parametrize("type_", TYPES)
def test_slices_do_not_show(type_: TensorType) -> None:
    x = np.random.default_rng(2).standard_normal((9, 1 << 15)).astype(np.float32)
    packed = quantize(type_, x)
    for row in (0, 3, 4, 8):
        np.testing.assert_array_equal(packed[row : row + 1], quantize(type_, x[row : row + 1]))
    whole = dequantize(type_, packed, x.shape[1])
    np.testing.assert_array_equal(whole[5:7], dequantize(type_, packed[5:7], x.shape[1]))


@pytest.mark.parametrize("type_", TYPES)
def test_takes_strided_rows_and_none(type_: TensorType) -> None:
    x = np.random.default_rng(3).standard_normal((64, 6)).astype(np.float32).T
    np.testing.assert_array_equal(quantize(type_, x), quantize(type_, x.copy()))
    assert dequantize(type_, quantize(type_, x[:0]), 64).shape == (0, 64)


def test_unpacks_read_only_rows_at_an_odd_address() -> None:
    stored = b"?" + np.array([[1.5, -2.0]], dtype=np.float32).tobytes()
    data = np.frombuffer(stored, np.uint8, offset=1).reshape(1, 8)
    assert dequantize(TensorType.F32, data, 2).tolist() == [[1.5, -2.0]]


def test_what_holds_no_weights_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"type is 'I8', but it must be one of F32, F16"):
        dequantize(TensorType.I8, np.zeros((1, 256), dtype=np.uint8), 256)


@pytest.mark.parametrize("call", [quantize, quantize_fitted])
def test_codebooks_are_read_and_not_made(call: Any) -> None:
    assert {type_.name for type_ in READABLE - WRITABLE} == {
        "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"
    }  # fmt: skip
    with pytest.raises(SettingError, match=r"type is 'IQ2_S', but it must be one of F32, F16"):
        call(TensorType.IQ2_S, np.zeros((1, 256), dtype=np.float32))


def test_rows_of_another_length_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match=r"rows of 64 Q8_0 numbers cannot have shape \(1, 34\)"):
        dequantize(TensorType.Q8_0, np.zeros((1, 34), dtype=np.uint8), 64)
