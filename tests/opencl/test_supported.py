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
        ({"attention_bias": True}, "biases of queries, keys and values"),
        ({"qk_norm": True}, "the normalisation of heads"),
        ({"sliding_window": 63}, "a sliding window of 63 positions"),
        ({"qk_norm": True, "experts": Experts(4, 2)}, "the normalisation of heads or experts"),
    ],
)
def test_what_is_not_run_is_named(feature: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=f"does not run {words} yet: use --backend cpu"):
        check_supported(tiny_config(**feature), 64)


@pytest.mark.parametrize(
    "feature",
    [
        {},
        {"sliding_window": 64},
        {"rope_scaling": LinearRope(2.0)},
        {"rope_scaling": YarnRope(2.0, 64, 1.1)},
    ],
)
def test_what_changes_no_kernel_is_run(feature: dict[str, Any]) -> None:
    check_supported(tiny_config(**feature), 64)
