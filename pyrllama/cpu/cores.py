"""How many threads a process may keep busy: physical performance cores, within its limits.

Two threads on one core share the units that a product keeps busy, and a thread on an efficiency
core holds up the others at every barrier.  So SMT siblings count once, and the smaller
cores of a hybrid CPU do not count, unless the process may use no others.

Sources: Linux's ABI documents sysfs-devices-system-cpu and cgroup-v2, "CFS bandwidth control" for
version 1 of control groups; macOS's sysctl(3), ``hw.perflevel0``.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/")
_CPUS = "sys/devices/system/cpu"
_HYBRID_PERFORMANCE = "sys/devices/cpu_core/cpus"
_CGROUPS = "sys/fs/cgroup"
_SIBLINGS = ("core_cpus_list", "thread_siblings_list")
"""Names of the list of CPUs that share a core, the newer one first."""


def performance_cores() -> int:
    """Return the physical performance cores that this process may use, at least 1."""
    system: str = sys.platform
    if system == "linux":
        return linux_cores(_ROOT, os.sched_getaffinity(0))
    counted = None
    if system == "darwin":
        counted = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu")
    return counted or os.cpu_count() or 1


def linux_cores(root: Path, allowed: set[int]) -> int:
    """Return the same for Linux, from the files under ``root`` and the affinity ``allowed``."""
    fast = allowed & _performance_cpus(root, allowed) or allowed
    cores = {_siblings(root, cpu) for cpu in fast}
    return max(1, min([len(cores), *cgroup_limits(root)]))


def _performance_cpus(root: Path, allowed: set[int]) -> set[int]:
    """Return the CPUs on performance cores; where the system does not tell, all of them."""
    intel = parse_list(_read(root / _HYBRID_PERFORMANCE))
    if intel:
        return intel
    capacities = {cpu: _number(_read(root / _CPUS / f"cpu{cpu}/cpu_capacity")) for cpu in allowed}
    known = [capacity for capacity in capacities.values() if capacity]
    # Arm's cores come in two or three sizes; the small ones have a third of the largest's.
    return {cpu for cpu, size in capacities.items() if not size or 2 * size >= max(known)}


def _siblings(root: Path, cpu: int) -> frozenset[int]:
    """Return the CPUs that share a core with one of them, itself included."""
    topology = root / _CPUS / f"cpu{cpu}/topology"
    for name in _SIBLINGS:
        if siblings := parse_list(_read(topology / name)):
            return frozenset(siblings)
    return frozenset({cpu})


def parse_list(text: str) -> set[int]:
    """Return the numbers of a list such as ``"0-3,8"``; empty if it is no such list."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        low, high = _number(first), _number(last or first)
        if low is None or high is None or high >= _MOST_CPUS:
            return set()
        numbers.update(range(low, high + 1))
    return numbers


_MOST_CPUS = 1 << 16
"""More CPUs than any system numbers; a list beyond it is damaged."""


# --- control groups ---------------------------------------------------------------------------


def cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the whole cores, at least 1, of each quota on this process's groups up to the top."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):
            if not controllers:
                yield from _limit_2(root / _CGROUPS / group)
            elif "cpu" in controllers.split(","):
                # The folder is named as the controllers that are mounted together.
                for mounted in dict.fromkeys((controllers, "cpu")):
                    yield from _limit_1(root / _CGROUPS / mounted / group)


def _limit_2(group: Path) -> Iterator[int]:
    """Yield the limit in ``cpu.max``: a quota, or "max", and the period, both microseconds."""
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    yield from _whole_cores(_number(quota), _number(period))


def _limit_1(group: Path) -> Iterator[int]:
    """Yield the limit of version 1, whose quota is -1 where there is none."""
    quota, period = (_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    yield from _whole_cores(_number(quota), _number(period))


def _whole_cores(quota: int | None, period: int | None) -> Iterator[int]:
    if quota and period:
        yield max(1, quota // period)


# --- reading ----------------------------------------------------------------------------------


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _read(path: Path) -> str:
    """Return a small text of the system's, empty where there is none."""
    try:
        return path.read_text("ascii", "replace")
    except (OSError, ValueError):
        return ""


def _sysctl(name: str) -> int | None:
    """Return a number that macOS tells, None if it does not."""
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    status = ctypes.CDLL(None).sysctlbyname(
        name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return value.value if status == 0 and value.value > 0 else None
