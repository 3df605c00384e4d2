"""What the OpenCL backend names as not run yet, before it looks for a device."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny_models import tiny_config

from pyrllama.errors import BackendError, SettingError
from pyrllama.model_config import Experts, LinearRope, YarnRope
from pyrllama.opencl.model import check_kv_type
from pyrllama.opencl.supported import check_supported
from pyrllama.tensors import TensorType


def test_what_is_not_run_is_named() -> None:
    words = "heads of more than 256 numbers"
    with pytest.raises(BackendError, match=f"does not run {words} yet: use --backend cpu"):
        check_supported(tiny_config(head_dim=258))


@pytest.mark.parametrize(
    "feature",
    [
        {},
        {"attention_bias": True},
        {"qk_norm": True},
        {"sliding_window": 63},
        {"experts": Experts(4, 2)},
        {"rope_scaling": LinearRope(2.0)},
        {"rope_scaling": YarnRope(2.0, 64, 1.1)},
    ],
)
def test_what_has_kernels_is_run(feature: dict[str, Any]) -> None:
    check_supported(tiny_config(**feature))


def test_a_type_that_no_cache_has_is_refused() -> None:
    for kv_type in (TensorType.F16, TensorType.F32, TensorType.Q8_0):
        check_kv_type(kv_type)
    with pytest.raises(SettingError, match=r"kv_type is 'Q4_0', but .* one of F16, F32, Q8_0"):
        check_kv_type(TensorType.Q4_0)
