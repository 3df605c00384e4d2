"""``rllama doctor``: the whole report, what it advises, and that no part can break it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import constants

import pyrllama
from pyrllama import code_cache, cpu
from pyrllama.cli import doctor
from pyrllama.cpu import compiler
from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Measure nothing, and return the sizes of the buffers that were asked for."""
    asked: list[int] = []

    def read_bandwidth(threads: int, buffer_bytes: int) -> float:
        assert threads == cpu.default_threads()
        asked.append(buffer_bytes)
        return 20e9

    monkeypatch.setattr(cpu, "read_bandwidth", read_bandwidth)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("RLLAMA_ISA", raising=False)
    return asked


def test_json(run: Run, small: list[int], tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--o--r" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "a").write_bytes(bytes(1000))
    (blobs / "link").symlink_to(blobs / "a")
    report = json.loads(run("doctor", "--json").out)
    assert report["problems"] == []
    machine = cpu.machine()
    assert report["processor"]["isa"] == machine["isa"]
    assert report["processor"]["features"] == machine["features"]
    assert report["processor"]["threads"] == cpu.default_threads()
    assert report["memory"]["read_bytes_per_second"] == 20e9
    assert 0 < small[0] <= 1 << 30
    assert report["kernels"]["folder"] == str(code_cache.folder())
    assert report["kernels"]["seconds"] >= 0
    assert report["hub"]["folder"] == str(tmp_path / "hub")
    assert report["hub"]["bytes"] == 1000
    assert report["hub"]["models"] == 1
    assert report["hub"]["writable"] is True
    assert report["versions"]["pyrllama"] == pyrllama.__version__
    assert report["versions"]["numba"]
    assert any("can decode at most 5.3 tokens/s" in line for line in report["advice"])


def test_for_people(run: Run) -> None:
    done = run("doctor")
    assert done.status == 0
    assert done.err == ""
    for words in ("instruction set", "read bandwidth  20.00 GB/s", "huge pages", "advice", "numba"):
        assert words in done.out


def test_a_wrong_isa_is_a_problem_and_not_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLAMA_ISA", "z80")
    done = run("doctor", "--json")
    assert done.status == 0
    report = json.loads(done.out)
    assert report["processor"] is None
    assert any("RLLAMA_ISA=z80: no such instruction set" in line for line in report["problems"])
    assert report["hub"] is not None
    assert "no such instruction set" in run("doctor").out


def test_kernels_that_do_not_compile_are_a_problem(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        raise BackendError(f"kernel {name} calls strange_function, which it may not")

    monkeypatch.setattr(compiler, "load", load)
    report = json.loads(run("doctor", "--json").out)
    assert report["kernels"] is None
    assert report["problems"] == ["kernel step.forward calls strange_function, which it may not"]
    assert report["memory"] is not None


def test_kernels_compiled_now_are_told_from_kept_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(code_cache.CACHE_VARIABLE, str(tmp_path / "kernels"))

    def load(_: str) -> None:
        file = tmp_path / "kernels" / "key" / "step.forward.o"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(300))

    monkeypatch.setattr(compiler, "load", load)
    found = doctor.kernels()
    assert (found["compiled_now"], found["files"], found["bytes"]) == (True, 1, 300)
    assert not doctor.kernels()["compiled_now"]


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    report = {"processor": None, "memory": None, "kernels": doctor.kernels(), "hub": None}
    (line,) = doctor.advice(report)
    assert line == f"{code_cache.folder()} cannot be written; name another with RLLAMA_CACHE_DIR"


PROCESSOR = {"isa_forced": None, "isa": "avx2", "threads": 8, "logical_cores": 8, "cores": 8}
MEMORY = {"huge_pages": "madvise", "read_bytes_per_second": 37.9e9, "free": None}


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        ("processor", {"isa_forced": "generic", "isa": "generic"}, "RLLAMA_ISA forces generic"),
        ("processor", {"threads": 2}, "may use 2 of 8 logical cores"),
        ("processor", {"cores": 4}, "try --max-threads 4"),
        ("memory", {"huge_pages": "never"}, "huge pages are off; 'echo madvise | sudo tee"),
        ("memory", {"free": 10**10}, "10.0 GB are free: room for a model of about 15.1 B weights"),
        ("memory", {}, "can decode at most 10.0 tokens/s"),
    ],
)
def test_advice(part: str, changed: dict[str, Any], said: str) -> None:
    report: dict[str, Any] = {
        "processor": PROCESSOR,
        "memory": MEMORY,
        "kernels": None,
        "hub": None,
    }
    report[part] = {**report[part], **changed}
    assert any(said in line for line in doctor.advice(report))


def test_a_good_machine_needs_no_advice() -> None:
    report = {"processor": PROCESSOR, "memory": None, "kernels": None, "hub": None}
    assert list(doctor.advice(report)) == []


def test_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "enabled"
    monkeypatch.setattr(doctor, "HUGE_PAGES", file)
    assert doctor.memory()["huge_pages"] is None
    file.write_text("always madvise [never]\n", encoding="ascii")
    assert doctor.memory()["huge_pages"] == "never"


def test_cores_share_logical_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CPUS", tmp_path)
    assert doctor.processor()["cores"] is None
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n", encoding="ascii")
    assert doctor.processor()["cores"] == 2
