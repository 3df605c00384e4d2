"""Lines of a history of ``rllama bench``, as short as they may be."""

from __future__ import annotations

import json
from typing import Any


def record(**changes: Any) -> dict[str, Any]:
    """Return what a line of a history must at least say, with some of it replaced."""
    return {
        "time": "2026-11-01T12:00:00+00:00",
        "commit": "1a2b3c4",
        "source": "1b",
        "weights": "Q4_0",
        "kv_type": "f16",
        "threads": 2,
        "workload": {"prompt_tokens": 512, "depth": 512, "sequences": 1},
        "machine": {"cpu": "abacus"},
        "decode_tokens_per_second": {"median": 40.0},
        "prefill_tokens_per_second": {"median": 300.0},
        "share_of_bandwidth": 0.9,
    } | changes


def line(**changes: Any) -> bytes:
    """Return a line of a history."""
    return json.dumps(record(**changes)).encode() + b"\n"
