"""Compiling once for all: the CPU backend's tests run every kernel on several instruction sets."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from pyrllama.cpu import compiler

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _one_lowering_for_every_instruction_set() -> Iterator[None]:
    """Keep Numba's code of a kernel, the slow part of compiling, for the next instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_numba_code", functools.cache(compiler._numba_code))
        yield
