"""What the OpenCL backend names as not run yet, before it looks for a device."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny_models import tiny_config

from pyrllama.core import Experts, LinearRope, YarnRope
from pyrllama.errors import BackendError
from pyrllama.opencl.supported import check_supported


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ({"experts": Experts(4, 2)}, "experts"),
        ({"head_dim": 258}, "heads of more than 256 numbers"),
        ({"experts": Experts(4, 2), "head_dim": 258}, "experts or heads of more than 256 numbers"),
    ],
)
def test_what_is_not_run_is_named(feature: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=f"does not run {words} yet: use --backend cpu"):
        check_supported(tiny_config(**feature))


@pytest.mark.parametrize(
    "feature",
    [
        {},
        {"attention_bias": True},
        {"qk_norm": True},
        {"sliding_window": 63},
        {"rope_scaling": LinearRope(2.0)},
        {"rope_scaling": YarnRope(2.0, 64, 1.1)},
    ],
)
def test_what_has_kernels_is_run(feature: dict[str, Any]) -> None:
    check_supported(tiny_config(**feature))
