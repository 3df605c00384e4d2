"""``rllama devices``, and the options that choose one; nothing here runs on a device."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from support.opencl_devices import fake_device

from pyrllama import cpu
from pyrllama.cli import bench
from pyrllama.opencl import bandwidth, device, features
from pyrllama.opencl.device import Feature
from pyrllama.reference.backend import ReferenceBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.cli import Run

    from pyrllama.opencl.device import Device


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """Let the machine have two devices, the second one a GPU of 16 GiB that does halves."""
    found = [fake_device(0), fake_device(1, 16 << 30)]
    for module in ("pyrllama.opencl", "pyrllama.opencl.device"):
        monkeypatch.setattr(f"{module}.list_devices", lambda: tuple(found))
    monkeypatch.setattr(
        features, "features", lambda device: [Feature.HALF] if device.number else []
    )
    monkeypatch.delenv(device.CONTEXT_VARIABLE, raising=False)
    return found


@pytest.fixture
def no_pyopencl(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run as where the package ``opencl`` was not asked for."""
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    device.list_devices.cache_clear()
    yield
    device.list_devices.cache_clear()


@pytest.mark.usefixtures("two")
def test_json(run: Run) -> None:
    done = run("devices", "--json")
    assert done.status == 0
    assert json.loads(done.out)[1] == {
        "number": 1,
        "name": "Abacus 1",
        "platform": "Beads",
        "driver": "1.0",
        "memory_bytes": 16 << 30,
        "largest_buffer_bytes": 4 << 30,
        "local_memory_bytes": 32 << 10,
        "compute_units": 4,
        "features": ["half precision"],
    }
    assert len(json.loads(done.out)) == 2


@pytest.mark.usefixtures("two")
def test_a_table_for_people(run: Run) -> None:
    done = run("devices")
    assert done.status == 0
    rows = done.out.splitlines()
    assert rows[0].split() == "device platform driver memory units features".split()
    assert rows[1].split() == "0 Abacus 0 Beads 1.0 8.6 GB 4 -".split()
    assert rows[2].split() == "1 Abacus 1 Beads 1.0 17.2 GB 4 half precision".split()


@pytest.mark.parametrize("arguments", [(), ("--json",)])
@pytest.mark.usefixtures("no_pyopencl")
def test_without_pyopencl(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("devices", *arguments)
    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith("error: PyOpenCL cannot be imported")
    assert "pip install 'pyrllama[opencl]'" in done.err


def test_without_a_device(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cl = pytest.importorskip("pyopencl")
    monkeypatch.setattr(cl, "get_platforms", list)
    device.list_devices.cache_clear()
    done = run("devices")
    device.list_devices.cache_clear()
    assert done.status == 2
    assert done.err.startswith("error: there is no OpenCL device; install your device's driver")


# --- choosing one -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("gpu", "'gpu' is no number of a device, nor several like 0,1; see 'rllama devices'"),
        ("0,", "'0,' is no number of a device"),
        ("2", "there is no OpenCL device 2; those of this machine: 0: Abacus 0 (Beads), 1: "),
        ("-1", "there is no OpenCL device -1"),
        ("0,1,1", "device 1 is named twice"),
    ],
)
@pytest.mark.usefixtures("two")
def test_a_device_that_is_not_there(run: Run, stories: Path, numbers: str, message: str) -> None:
    done = run("--model-path", stories, "--prompt", "x", "-q", "--opencl-device", numbers)
    assert done.status == 2
    assert done.out == ""
    assert message in done.err.replace("\n", " ")


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan"])
@pytest.mark.usefixtures("two")
def test_a_share_that_is_none(run: Run, stories: Path, share: str) -> None:
    done = run(
        "--model-path",
        stories,
        "--prompt",
        "x",
        "--opencl-device",
        "0",
        "--percentage-to-gpu",
        share,
    )
    assert done.status == 2
    assert "from 0 (none) to 1 (all layers)" in done.err


def test_bench_measures_the_devices_memory(
    run: Run, stories: Path, two: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Device] = []

    def copy_bandwidth(device: Device) -> float:
        asked.append(device)
        return 1e12 * (1 + device.number)

    def load_model(checkpoint, *, max_seq_len, **options):  # type: ignore[no-untyped-def]
        assert options["backend"] == "opencl"
        assert options["opencl_devices"] == [0, 1]
        assert options["gpu_share"] == 0.5
        return ReferenceBackend(checkpoint, max_seq_len, None)

    monkeypatch.setattr(bandwidth, "copy_bandwidth", copy_bandwidth)
    monkeypatch.setattr(bench, "load_model", load_model)
    monkeypatch.setattr(cpu, "machine", lambda: {"cpu": "abacus"})
    done = run(
        "bench", "--model-path", stories, "--opencl-device", "0,1", "--percentage-to-gpu", "0.5",
        "--prompt-tokens", "4", "--generate-tokens", "2", "--repetitions", "1", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert asked == [*two, *two]
    assert report["backend"] == "opencl"
    assert report["machine"]["opencl"] == "0: Abacus 0 (Beads); 1: Abacus 1 (Beads)"
    assert report["read_bandwidth_gigabytes_per_second"] == {"before": 2000.0, "after": 2000.0}
    assert report["share_of_bandwidth"] == pytest.approx(report["gigabytes_per_second"] / 2000)
