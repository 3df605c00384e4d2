"""``rllama doctor``: what this machine is, what is used of it, and what could be better."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import stat
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from pyrllama import __version__, code_cache
from pyrllama.cli.doctor_view import print_report
from pyrllama.errors import RllamaError
from pyrllama.memory import free_memory
from pyrllama.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPUS = Path("/sys/devices/system/cpu")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PACKAGES = (
    "numpy", "numba", "llvmlite", "tokenizers", "sentencepiece", "regex", "huggingface_hub",
    "click", "rich",
)  # fmt: skip
LARGEST_KERNEL = "step.forward"
Q4_0_BYTES_A_WEIGHT = 18 / 32
SHARE_FOR_WEIGHTS = 0.85
"""Of the free memory; the rest is for the KV cache and the working memory."""
SEVEN_BILLION = 6_738_415_616
"""Weights of LLaMA 7B, the measure that people know."""

EPILOG = """\b
Examples:
  rllama doctor
  rllama doctor --json > report.json

A report of a defect should have the output of --json with it. It tells folders and versions of
this machine and nothing of your models or texts.
"""


@click.command(epilog=EPILOG, short_help="Look at this machine and give advice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> int:
    """Look at this machine: processor, memory, caches, versions - and give advice."""
    report = examine()
    if as_json:
        click.echo(json.dumps(report))
    else:
        print_report(report)
    return 0


def examine() -> dict[str, Any]:
    """Return the whole report as plain values; what cannot be found out is None.

    A part that fails leaves its error under ``problems`` and the others untouched.
    """
    problems: list[str] = []
    report: dict[str, Any] = {"versions": versions()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "processor": processor,
        "kernels": kernels,
        "memory": memory,
        "hub": hub_cache,
    }
    for name, find in parts.items():
        try:
            report[name] = find()
        except RllamaError as error:
            problems.append(str(error))
            report[name] = None
    report["problems"] = problems
    report["advice"] = list(advice(report))
    return report


def versions() -> dict[str, str | None]:
    """Return the versions of everything that a defect may depend on, None for what is absent."""
    found: dict[str, str | None] = {
        "pyrllama": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def processor() -> dict[str, Any]:
    """Return the processor, the instruction set that is used, and the threads."""
    from pyrllama import cpu  # noqa: PLC0415 - brings LLVM

    return {
        **cpu.machine(),
        "isa_forced": os.environ.get("RLLAMA_ISA") or None,
        "logical_cores": os.cpu_count(),
        "cores": _cores(),
        "threads": cpu.default_threads(),
    }


def kernels() -> dict[str, Any]:
    """Return the state of the compiled kernels, after making the largest one ready."""
    from pyrllama.cpu import compiler  # noqa: PLC0415 - brings LLVM

    folder = code_cache.folder()
    before = set(_files(folder))
    started = perf_counter()
    compiler.load(LARGEST_KERNEL)
    seconds = perf_counter() - started
    after = set(_files(folder))
    return {
        **_folder(folder),
        "files": len(after),
        "compiled_now": not after <= before,
        "seconds": seconds,
    }


def memory() -> dict[str, Any]:
    """Return the memory in bytes, its read bandwidth with all threads, and its page mode."""
    from pyrllama import cpu  # noqa: PLC0415 - brings LLVM
    from pyrllama.cpu.bandwidth import BUFFER_BYTES  # noqa: PLC0415

    free = free_memory()
    buffer_bytes = BUFFER_BYTES if free is None else min(BUFFER_BYTES, free // 4)
    return {
        "total": _total_memory(),
        "free": free,
        "read_bytes_per_second": cpu.read_bandwidth(cpu.default_threads(), buffer_bytes),
        "huge_pages": _huge_pages(),
    }


def hub_cache() -> dict[str, Any]:
    """Return the state of the cache of ``rllama pull``."""
    from huggingface_hub import constants  # noqa: PLC0415 - start-up time

    from pyrllama import hub  # noqa: PLC0415

    folder = hub.cache_folder()
    return {
        **_folder(folder),
        "models": len(list(folder.glob("models--*"))),
        "endpoint": constants.ENDPOINT,
        "offline": constants.HF_HUB_OFFLINE,
    }


def advice(report: dict[str, Any]) -> Iterator[str]:
    """Yield what the user could do, and what may be expected, in whole sentences."""
    if report["processor"]:
        yield from _processor_advice(report["processor"])
    for name, variable in (("kernels", "RLLAMA_CACHE_DIR"), ("hub", "HF_HOME")):
        if report[name] and not report[name]["writable"]:
            yield f"{report[name]['folder']} cannot be written; name another with {variable}"
    if report["memory"]:
        yield from _memory_advice(report["memory"])


def _processor_advice(found: dict[str, Any]) -> Iterator[str]:
    if found["isa_forced"]:
        yield f"RLLAMA_ISA forces {found['isa_forced']}; unset it unless you compare"
    elif found["isa"] == "generic" and platform.machine().lower() in {"x86_64", "amd64"}:
        yield "this processor has no AVX2, so the kernels run several times slower"
    threads, logical, cores = found["threads"], found["logical_cores"], found["cores"]
    if logical and threads < logical:
        yield f"this process may use {threads} of {logical} logical cores (affinity or container)"
    if cores and threads > cores:
        yield f"two threads share a core; try --max-threads {cores}, which may be faster"


def _memory_advice(found: dict[str, Any]) -> Iterator[str]:
    if found["huge_pages"] == "never":
        yield f"huge pages are off; 'echo madvise | sudo tee {HUGE_PAGES}' speeds up reading"
    rate = found["read_bytes_per_second"] / (SEVEN_BILLION * Q4_0_BYTES_A_WEIGHT)
    yield f"a model of 7 B weights as Q4_0 can decode at most {rate:.1f} tokens/s on this memory"
    if found["free"] is not None:
        most = found["free"] * SHARE_FOR_WEIGHTS / Q4_0_BYTES_A_WEIGHT
        yield (
            f"{format_bytes(found['free'])} are free: room for a model of about "
            f"{format_count(int(most))} weights as Q4_0"
        )


def _cores() -> int | None:
    """Return the physical cores, whose logical ones name each other (Linux)."""
    siblings = set()
    for file in CPUS.glob("cpu[0-9]*/topology/thread_siblings_list"):
        try:
            siblings.add(file.read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            return None
    return len(siblings) or None


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _huge_pages() -> str | None:
    """Return the mode that stands in brackets: ``always [madvise] never``."""
    try:
        modes = HUGE_PAGES.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return None
    return next((mode.strip("[]") for mode in modes if mode.startswith("[")), None)


def _folder(folder: Path) -> dict[str, Any]:
    """Return a cache's folder, its bytes, and whether it can be written or made."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return {
        "folder": str(folder),
        "bytes": sum(_files(folder).values()),
        "writable": existing is not None and os.access(existing, os.W_OK),
    }


def _files(folder: Path) -> dict[Path, int]:
    """Return the sizes of the regular files under a folder; a link counts for nothing."""
    found = {}
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:  # another process may tidy up meanwhile
            continue
        if stat.S_ISREG(status.st_mode):
            found[path] = status.st_size
    return found
