"""Counting cores, on made-up trees of the files in which Linux describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyrllama.cpu.cores import linux_cores, parse_list, performance_cores

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CPU = "sys/devices/system/cpu/cpu{}"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write files under a root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


def siblings(*cores: str, name: str = "thread_siblings_list") -> dict[str, str]:
    """Return the files of CPUs whose cores are the lists ``"0,4"`` and so on."""
    return {
        f"{CPU.format(cpu)}/topology/{name}": f"{core}\n"
        for core in cores
        for cpu in parse_list(core)
    }


SMT = siblings("0,4", "1,5", "2,6", "3,7")
HYBRID = {**siblings("0-1", "2-3", "4", "5", "6", "7"), "sys/devices/cpu_core/cpus": "0-3\n"}
ARM = {f"{CPU.format(i)}/cpu_capacity": f"{size}\n" for i, size in enumerate([250, 250, 870, 1024])}


@pytest.mark.parametrize(
    ("files", "allowed", "expected"),
    [
        ({}, {0, 1, 2}, 3),
        (SMT, set(range(8)), 4),
        (siblings("0,2", "1,3", name="core_cpus_list"), {0, 1, 2, 3}, 2),
        (SMT, {0, 4, 1}, 2),
        (SMT, {4, 5, 6, 7}, 4),
        (HYBRID, set(range(8)), 2),
        (HYBRID, {1, 4, 5}, 1),
        (HYBRID, {5, 6, 7}, 3),
        (ARM, {0, 1, 2, 3}, 2),
        (ARM, {0, 1}, 2),
        ({f"{CPU.format(0)}/cpu_capacity": "what"}, {0, 1}, 2),
        ({f"{CPU.format(0)}/topology/thread_siblings_list": "x"}, {0, 1}, 2),
    ],
)  # fmt: skip
def test_physical_performance_cores_within_the_affinity(
    files: dict[str, str], allowed: set[int], expected: int, tmp_path: Path
) -> None:
    assert linux_cores(tree(tmp_path, files), allowed) == expected


V2 = {"proc/self/cgroup": "0::/user/job\n"}
V1 = {"proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/user/job\n"}
GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({**V2, f"{GROUPS}/user/job/cpu.max": "400000 100000\n"}, 4),
        ({**V2, f"{GROUPS}/user/job/cpu.max": "250000 100000"}, 2),
        ({**V2, f"{GROUPS}/user/job/cpu.max": "50000 100000"}, 1),
        ({**V2, f"{GROUPS}/user/job/cpu.max": "max 100000\n"}, 8),
        ({**V2, f"{GROUPS}/user/cpu.max": "300000 100000\n"}, 3),
        ({**V2, f"{GROUPS}/cpu.max": "200000 100000\n"}, 2),
        ({**V2, f"{GROUPS}/user/job/cpu.max": "500000 100000",
          f"{GROUPS}/user/cpu.max": "300000 100000"}, 3),
        ({**V2, f"{GROUPS}/user/job/cpu.max": "what"}, 8),
        ({**V2, f"{GROUPS}/user/job/cpu.max": ""}, 8),
        ({**V2, f"{GROUPS}/user/job/cpu.max": "100000 0"}, 8),
        ({f"{GROUPS}/other/cpu.max": "100000 100000", **V2}, 8),
        (V1, 8),
        ({**V1, f"{GROUPS}/cpu,cpuacct/user/job/cpu.cfs_quota_us": "300000\n",
          f"{GROUPS}/cpu,cpuacct/user/job/cpu.cfs_period_us": "100000\n"}, 3),
        ({**V1, f"{GROUPS}/cpu/user/cpu.cfs_quota_us": "200000",
          f"{GROUPS}/cpu/user/cpu.cfs_period_us": "100000"}, 2),
        ({**V1, f"{GROUPS}/cpu/user/cpu.cfs_quota_us": "-1",
          f"{GROUPS}/cpu/user/cpu.cfs_period_us": "100000"}, 8),
        ({"proc/self/cgroup": "nonsense"}, 8),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert linux_cores(tree(tmp_path, files), set(range(8))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", {0}), ("0-2,5\n", {0, 1, 2, 5}), ("", set()), ("a", set()), ("-3", set()),
     ("0-99999999999", set()), ("1,,2", set())],
)  # fmt: skip
def test_lists_of_cpus(text: str, expected: set[int]) -> None:
    assert parse_list(text) == expected


def test_this_machine_has_a_core() -> None:
    assert performance_cores() >= 1
