"""Which instruction set is chosen, and what is said of the machine."""

from __future__ import annotations

import math

import llvmlite.binding as llvm
import pytest
from support.kernels import each_isa, use_isa

from pyrllama import cpu
from pyrllama.cpu import target
from pyrllama.cpu.target import AVX2, AVX512, AVXVNNI, GENERIC, ISAS, Isa
from pyrllama.errors import BackendError

HASWELL = AVX2.needs | {"sse4.2", "avx"}
ALDER_LAKE = HASWELL | AVXVNNI.needs
ICE_LAKE = HASWELL | AVX512.needs
SAPPHIRE_RAPIDS = ICE_LAKE | AVXVNNI.needs


def pretend(monkeypatch: pytest.MonkeyPatch, features: frozenset[str]) -> None:
    """Make the machine one with these features."""
    monkeypatch.setattr(target, "host_features", lambda: features)


@pytest.fixture(autouse=True)
def _nothing_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(target.ISA_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (frozenset[str](), (GENERIC,)),
        (frozenset({"avx2", "fma"}), (GENERIC,)),  # no F16C
        (HASWELL, (AVX2, GENERIC)),
        (ALDER_LAKE, (AVXVNNI, AVX2, GENERIC)),
        (ICE_LAKE, (AVX512, AVX2, GENERIC)),
        (ICE_LAKE - {"avx512vnni"}, (AVX2, GENERIC)),
        (SAPPHIRE_RAPIDS, (AVX512, AVXVNNI, AVX2, GENERIC)),
    ],
)
def test_the_best_instruction_set_of_the_machine_is_chosen(
    features: frozenset[str], expected: tuple[Isa, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, features)
    assert target.supported() == expected
    assert target.chosen() is expected[0]


@each_isa
@pytest.mark.parametrize("spelling", [str.lower, str.upper, " {} ".format])
def test_one_can_be_forced(isa: Isa, spelling: type[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(target.ISA_VARIABLE, spelling(isa.name))
    assert target.chosen() is isa
    assert target.describe()["isa"] == isa.name


def test_an_empty_name_forces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(target.ISA_VARIABLE, "")
    assert target.chosen() is target.supported()[0]


def test_an_unknown_name_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, HASWELL)
    monkeypatch.setenv(target.ISA_VARIABLE, "avx1024")
    message = "RLLAMA_ISA=avx1024: no such instruction set; choose one of avx2, generic$"
    with pytest.raises(BackendError, match=message):
        target.chosen()


@pytest.mark.parametrize("isa", [AVX512, AVXVNNI], ids=lambda isa: isa.name)
def test_one_that_the_cpu_lacks_is_a_named_error(isa: Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, HASWELL)
    use_isa(monkeypatch, isa)
    message = f"RLLAMA_ISA={isa.name}: this CPU lacks it; it can run avx2, generic$"
    with pytest.raises(BackendError, match=message):
        target.chosen()


def test_a_forced_instruction_set_switches_better_ones_off() -> None:
    for isa in target.supported():
        _, features = target.cpu_and_features(isa)
        on = {name[1:] for name in features.split(",") if name.startswith("+")}
        assert isa.needs <= on
        assert not isa.without & on


def test_the_host_knows_the_features_that_are_asked_for_by_name() -> None:
    if not llvm.get_default_triple().startswith("x86_64"):
        pytest.skip("the named instruction sets are x86's")
    known = set(llvm.get_host_cpu_features())
    for isa in ISAS:
        assert isa.needs <= known, "a feature of this name is never found"


def test_the_machine_is_described() -> None:
    machine = cpu.machine()
    assert machine.keys() == {"cpu", "llvm_cpu", "features", "isa", "llvm"}
    assert machine["cpu"]
    assert machine["llvm_cpu"] == llvm.get_host_cpu_name()
    assert machine["isa"] == target.supported()[0].name
    assert machine["features"] == sorted(machine["features"])
    assert set(machine["features"]) <= target.host_features()
    assert machine["llvm"] == ".".join(map(str, llvm.llvm_version_info))


# --- bandwidth --------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_read_bandwidth_is_a_rate(threads: int) -> None:
    rate = cpu.read_bandwidth(threads, 1 << 20)
    assert 1e6 < rate < 1e13
    assert math.isfinite(rate)
