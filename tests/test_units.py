"""Sizes and counts as people say them."""

from __future__ import annotations

import pytest

from pyrllama.units import format_bytes, format_count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_826_000_000, "3.8 GB"),
        (26.4e12, "26.4 TB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12"), (260_032, "260 K"), (109_529_856, "110 M"), (6_738_415_616, "6.74 B")],
)
def test_counts(count: int, text: str) -> None:
    assert format_count(count) == text
