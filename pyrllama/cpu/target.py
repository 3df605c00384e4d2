"""Which machine code to make: the CPU's features, and the instruction set that is chosen.

This module knows LLVM's names of features and nothing of kernels, so a start that finds its
machine code on disk never imports Numba.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from pyrllama.errors import BackendError

ISA_VARIABLE = "RLLAMA_ISA"
"""Environment variable that forces an instruction set: one of ``ISAS``, or ``generic``."""


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set that kernels are lowered to."""

    name: str
    cpu: str
    """LLVM's name of a CPU that has it, to compile for it on another machine."""
    needs: frozenset[str]
    """LLVM's names of the features that kernels use by name."""
    without: frozenset[str] = frozenset()
    """Features to switch off, so that a forced instruction set is really that one."""

    def has(self, feature: str) -> bool:
        """Tell whether kernels may use a feature by name."""
        return feature in self.needs


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"})
_ALL_AVX512 = _AVX512 | {
    f"avx512{part}"
    for part in (
        "bf16",
        "bitalg",
        "cd",
        "fp16",
        "ifma",
        "vbmi",
        "vbmi2",
        "vp2intersect",
        "vpopcntdq",
    )
}

_AMX = frozenset({"amx-tile", "amx-bf16"})

AMX = Isa("amx", "sapphirerapids", _AVX2 | _AVX512 | _AMX)
AVX512 = Isa("avx512", "icelake-server", _AVX2 | _AVX512)
AVXVNNI = Isa("avxvnni", "alderlake", _AVX2 | {"avxvnni"}, _ALL_AVX512)
AVX2 = Isa("avx2", "haswell", _AVX2, _ALL_AVX512 | {"avxvnni"})
GENERIC = Isa("generic", "", frozenset())
ISAS = (AMX, AVX512, AVXVNNI, AVX2)
"""Every named instruction set, the best first."""


@cache
def host_features() -> frozenset[str]:
    """Return LLVM's names of the features that this CPU and its system offer."""
    features = {name for name, there in llvm.get_host_cpu_features().items() if there}
    if "amx-tile" in features and not _may_use_tiles():
        features -= {name for name in features if name.startswith("amx")}
    return frozenset(features)


def _may_use_tiles() -> bool:
    """Ask Linux for the tile registers, which a process must do before its first use.

    Their state is 8 KB a thread, so the kernel saves it for those alone that asked; threads
    that are started later inherit the permission.
    """
    request_permission, tile_data, syscall = 0x1023, 18, 158  # arch_prctl of x86-64
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(syscall, request_permission, tile_data) == 0)


def supported() -> tuple[Isa, ...]:
    """Return the instruction sets that this machine can run, the best first."""
    return (*(isa for isa in ISAS if isa.needs <= host_features()), GENERIC)


def chosen() -> Isa:
    """Return the best instruction set of this machine, or the one that ``RLLAMA_ISA`` names.

    Raises ``BackendError`` for a name that does not exist or that this CPU cannot run.
    """
    asked = os.environ.get(ISA_VARIABLE, "").strip().lower()
    possible = supported()
    if not asked:
        return possible[0]
    for isa in possible:
        if isa.name == asked:
            return isa
    names = ", ".join(isa.name for isa in possible)
    if asked in {isa.name for isa in ISAS}:
        raise BackendError(f"{ISA_VARIABLE}={asked}: this CPU lacks it; it can run {names}")
    raise BackendError(f"{ISA_VARIABLE}={asked}: no such instruction set; choose one of {names}")


def _is_x86() -> bool:
    return platform.machine().lower() in {"x86_64", "amd64", "i386", "i686"}


def cpu_and_features(isa: Isa) -> tuple[str, str]:
    """Return LLVM's CPU name and feature string for compiling to ``isa`` on this machine.

    The generic set on x86 is the baseline of the architecture; elsewhere (NEON, RISC-V) it is
    whatever the host has, because there the plain vectors are all that kernels use.
    """
    host = llvm.get_host_cpu_features()
    if isa is GENERIC:
        if _is_x86():
            return "x86-64", ""
        return llvm.get_host_cpu_name(), host.flatten()
    if not isa.needs <= host_features():  # compiled to be looked at, not to be run here
        return isa.cpu, ",".join(f"+{name}" for name in sorted(isa.needs))
    features = {name: there and name not in isa.without for name, there in host.items()}
    # A part that is switched off must not come back through one that is built upon it.
    flags = [f"{'+' if there else '-'}{name}" for name, there in sorted(features.items())]
    return llvm.get_host_cpu_name(), ",".join(flags)


@cache
def initialise_llvm() -> None:
    """Prepare LLVM to make and load machine code; it must happen once before anything else."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()


def target_machine(isa: Isa) -> llvm.TargetMachine:
    """Return LLVM's code generator for an instruction set."""
    initialise_llvm()
    cpu, features = cpu_and_features(isa)
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )


def describe() -> dict[str, Any]:
    """Return what a bug report or a benchmark must say of the machine and the compiler."""
    interesting = ("avx", "amx", "fma", "f16c", "neon", "sve", "dotprod", "i8mm", "vnni")
    return {
        "cpu": _cpu_model(),
        "llvm_cpu": llvm.get_host_cpu_name(),
        "features": sorted(f for f in host_features() if f.startswith(interesting)),
        "isa": chosen().name,
        "llvm": ".".join(map(str, llvm.llvm_version_info)),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
