"""The systems' ways to sleep: that LLVM accepts each, and that this system's is bound."""

from __future__ import annotations

import llvmlite.binding as llvm
import pytest

from pyrllama.cpu import waiting
from pyrllama.cpu.waiting import FUTEX_NUMBERS, SYSTEM_SLEEP, SYSTEM_WAKE

SYSTEMS = [("linux", machine) for machine in FUTEX_NUMBERS]
SYSTEMS += [
    ("linux", "unheard-of"),
    ("darwin", "arm64"),
    ("win32", "AMD64"),
    ("freebsd14", "amd64"),
]


@pytest.mark.parametrize(("system", "machine"), SYSTEMS)
def test_every_system_defines_both_operations(system: str, machine: str) -> None:
    module = llvm.parse_assembly(waiting.definitions(system, machine))
    module.verify()
    defined = {f.name for f in module.functions if not f.is_declaration}
    assert defined == {waiting.SLEEP, waiting.WAKE}
    outside = {f.name for f in module.functions if f.is_declaration}
    assert SYSTEM_SLEEP in outside
    assert outside <= {SYSTEM_SLEEP, SYSTEM_WAKE}


@pytest.mark.parametrize(("machine", "number"), FUTEX_NUMBERS.items())
def test_linux_calls_the_futex_of_the_machine(machine: str, number: int) -> None:
    assert f"i64 {number}," in waiting.definitions("linux", machine)


def test_the_functions_of_this_system_are_there() -> None:
    symbols = waiting.symbols()
    assert symbols.keys() == {SYSTEM_SLEEP, SYSTEM_WAKE}
    assert all(symbols.values())
