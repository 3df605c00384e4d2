"""Machine code: what it holds, where it is kept, and that a second start makes none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import llvmlite.binding as llvm
import numpy as np
import pytest
from support.cpu_models import cpu_model
from support.kernels import each_isa
from support.tiny_models import logits_of, random_weights, tiny_config

from pyrllama import code_cache
from pyrllama.cpu import compiler, target
from pyrllama.cpu.target import AVX2, AVX512, AVXVNNI, GENERIC, Isa
from pyrllama.errors import BackendError
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Callable

KERNEL = "conversions.quantise_f32"
"""A kernel that compiles in a fraction of a second."""
X86_ONLY = pytest.mark.skipif(
    not llvm.get_default_triple().startswith("x86_64"), reason="these instruction sets are x86's"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder, which a process that has loaded nothing yet uses."""
    monkeypatch.setenv(code_cache.CACHE_VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setattr(compiler, "_loaded", {})
    return tmp_path / "kernels"


def copy_works(kernel: compiler.Kernel) -> bool:
    """Tell whether the loaded ``KERNEL`` copies a row of float32."""
    source, out = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    kernel.call(source.ctypes.data, out.ctypes.data, 32)
    return bool(np.array_equal(source, out))


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return what lies in a folder: times of change and contents."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


# --- which instructions -----------------------------------------------------------------------


@cache
def assembly_of(name: str, isa: Isa) -> str:
    return compiler.assembly(name, isa)


def lines(name: str, isa: Isa, instruction: str) -> list[str]:
    """Return the lines of a kernel's assembly that hold an instruction."""
    found = [line for line in assembly_of(name, isa).splitlines() if instruction in line]
    assert found, f"no {instruction} in {name} for {isa.name}"
    return found


@X86_ONLY
@pytest.mark.parametrize("name", ["matvec.q4_0", "matvec.q8_0"])
def test_avx512_multiplies_64_bytes_at_once(name: str) -> None:
    assert all("%zmm" in line for line in lines(name, AVX512, "vpdpbusd"))


@X86_ONLY
@pytest.mark.parametrize("name", ["matvec.q4_0", "matvec.q8_0"])
def test_avxvnni_multiplies_32_bytes_at_once(name: str) -> None:
    assert all("%ymm" in line for line in lines(name, AVXVNNI, "vpdpbusd"))
    assert "zmm" not in assembly_of(name, AVXVNNI)


@X86_ONLY
@pytest.mark.parametrize("name", ["matvec.q4_0", "matvec.q8_0"])
def test_avx2_multiplies_without_vnni(name: str) -> None:
    assert all("%ymm" in line for line in lines(name, AVX2, "vpmaddubsw"))
    assert lines(name, AVX2, "vfmadd")
    assert lines(name, AVX2, "vcvtph2ps")
    assert not re.search("vpdpbusd|zmm", assembly_of(name, AVX2))


@X86_ONLY
def test_generic_code_runs_on_the_oldest_cpus() -> None:
    text = assembly_of("matvec.q4_0", GENERIC)
    assert "%xmm" in text
    assert not re.search(r"[yz]mm|vpmadd|vfmadd|vcvtph", text)


@each_isa
def test_no_kernel_calls_the_mathematics_library(isa: Isa) -> None:
    calls = re.findall(r"\bcallq?\s+(\S+)", assembly_of("matvec.q4_0", isa))
    assert calls == []


def test_a_kernel_that_calls_something_foreign_is_refused() -> None:
    module = llvm.parse_assembly("""
        declare void @NRT_incref(ptr)
        declare <4 x float> @llvm.fma.v4f32(<4 x float>, <4 x float>, <4 x float>)
        declare ptr @memcpy(ptr, ptr, i64)
        define void @inner(ptr %p) { call void @NRT_incref(ptr %p) ret void }
    """)
    with pytest.raises(BackendError, match=r"kernel step\.forward calls NRT_incref"):
        compiler._check_self_contained("step.forward", module)


def test_a_kernel_may_use_memory_functions_and_sleep() -> None:
    module = llvm.parse_assembly("""
        declare i64 @rllama_system_sleep(i64, ...)
        declare ptr @memset(ptr, i32, i64)
        declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
    """)
    compiler._check_self_contained("step.forward", module)


# --- the cache --------------------------------------------------------------------------------


def test_machine_code_is_kept_and_loaded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = compiler.load(KERNEL)
    assert kernel.name == KERNEL
    assert copy_works(kernel)
    kept = files(folder)
    assert [path.name for path in kept] == [f"{KERNEL}.o"], "no temporary file is left"
    assert compiler.load(KERNEL) is kernel

    def compile_nothing(name: str, isa: Isa) -> None:
        raise AssertionError(f"{name} is compiled again for {isa.name}")

    monkeypatch.setattr(compiler, "_loaded", {})
    monkeypatch.setattr(compiler, "_compile", compile_nothing)
    again = compiler.load(KERNEL)
    assert again is not kernel
    assert copy_works(again)
    assert files(folder) == kept


def test_every_instruction_set_has_its_own_code(folder: Path) -> None:
    kernels = [compiler.load(KERNEL, isa) for isa in target.supported()]
    assert all(map(copy_works, kernels))
    assert len({kernel.address for kernel in kernels}) == len(kernels)
    assert len({path.parent for path in files(folder)}) == len(kernels)


def test_the_key_changes_with_the_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = compiler._cache_file(KERNEL, GENERIC)
    assert file.is_relative_to(folder)
    assert compiler._cache_file(KERNEL, GENERIC) == file
    monkeypatch.setattr(compiler, "_sources_digest", lambda: "other sources")
    assert compiler._cache_file(KERNEL, GENERIC).parent != file.parent


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing in it": lambda content: b"",
    "cut within the digest": lambda content: content[:20],
    "only the digest": lambda content: content[:32],
    "cut in the code": lambda content: content[: len(content) // 2],
    "a bit of the digest": lambda content: flipped(content, 5),
    "a bit of the argument count": lambda content: flipped(content, 32),
    "a bit of the code": lambda content: flipped(content, len(content) // 2),
    "more behind it": lambda content: content + b"\0",
    "something else": lambda content: b"# not machine code\n" * 100,
}


def test_a_damaged_cache_file_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.load(KERNEL)
    (file,) = files(folder)
    whole = file.read_bytes()
    assert code_cache.read(file) == whole[32:]
    for name, damage in DAMAGES.items():
        file.write_bytes(damage(whole))
        assert code_cache.read(file) is None, name
    monkeypatch.setattr(compiler, "_loaded", {})
    assert copy_works(compiler.load(KERNEL))
    assert code_cache.read(file) is not None


@pytest.mark.parametrize("obstacle", ["a file where the folder should be", "a folder as the file"])
def test_a_cache_that_cannot_be_written_does_no_harm(folder: Path, obstacle: str) -> None:
    if obstacle.startswith("a file"):
        folder.write_text("in the way", encoding="ascii")
    else:
        (compiler._cache_file(KERNEL, target.chosen()) / "inside").mkdir(parents=True)
    assert copy_works(compiler.load(KERNEL))
    left = [path.name for path in folder.rglob("*.tmp")]
    assert left == [], "no temporary file is left"


SECOND_START = """
import json, sys
sys.path.insert(0, {tests!r})
from support.tiny_models import MemoryCheckpoint, logits_of, random_weights, tiny_config
from pyrllama.tensors import TensorType
from pyrllama.cpu import load_model
config = tiny_config()
checkpoint = MemoryCheckpoint(config, random_weights(config))
model = load_model(checkpoint, type=TensorType.Q8_0, max_seq_len=64, threads=2)
logits = logits_of(model, range(40))
model.close()
heavy = ("numba", "pyrllama.cpu.step", "pyrllama.cpu.vectors", "pyrllama.cpu.layout")
print(json.dumps([[name for name in heavy if name in sys.modules], logits[-1].tolist()]))
"""


def test_a_second_start_compiles_nothing_and_does_not_import_numba(tmp_path: Path) -> None:
    config, isa = tiny_config(), target.chosen()
    with cpu_model(config, random_weights(config), isa, TensorType.Q8_0, threads=2) as model:
        expected = logits_of(model, range(40))[-1].tolist()
    # A copy, because other tests may be compiling into the folder at the same time.
    shutil.copytree(code_cache.folder(), folder := tmp_path / "kernels")
    before = files(folder)
    script = SECOND_START.format(tests=str(Path(__file__).resolve().parents[1]))
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, code_cache.CACHE_VARIABLE: str(folder)},
    )
    imported, logits = json.loads(result.stdout)
    assert imported == []
    assert logits == expected
    assert files(folder) == before


def test_two_first_starts_at_once_do_not_disturb_each_other(folder: Path) -> None:
    script = f"""
from pyrllama.cpu import compiler
compiler.load({KERNEL!r})
print("loaded")
"""
    starts = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ)
        for _ in range(2)
    ]
    assert [start.communicate(timeout=60)[0] for start in starts] == [b"loaded\n"] * 2
    assert [path.name for path in files(folder)] == [f"{KERNEL}.o"]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no such permissions")
def test_code_in_a_folder_that_others_can_write_to_is_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.load(KERNEL)
    (kept,) = folder.glob(f"*/{KERNEL}.o")
    kept.parent.chmod(0o777)
    assert code_cache.read(kept) is None
    kept.write_bytes(b"what somebody else put there")
    monkeypatch.setattr(compiler, "_loaded", {})
    assert copy_works(compiler.load(KERNEL))


# --- what is removed from the cache -----------------------------------------------------------

OLD = "0123456789abcdef01234567"
DAYS = 86_400


def old_folder(folder: Path, name: str, days: float) -> Path:
    """Make a folder with a file of machine code that was last used so many days ago."""
    made = folder / name
    made.mkdir(parents=True, mode=0o700)
    (made / "matvec.q4_0.o").write_bytes(b"code")
    used = time.time() - days * DAYS
    os.utime(made, (used, used))
    return made


def test_folders_that_nobody_used_for_long_are_removed(folder: Path) -> None:
    old, recent = old_folder(folder, OLD, 31), old_folder(folder, OLD[::-1], 29)
    strangers = [old_folder(folder, "something-else", 400), old_folder(folder, OLD + "0", 400)]
    compiler.load(KERNEL)  # a new version's first kernel prunes
    assert not old.exists()
    assert recent.exists()
    assert all(stranger.exists() for stranger in strangers)
    assert compiler._cache_file(KERNEL, target.chosen()).exists()


def test_using_code_keeps_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.load(KERNEL)
    own = compiler._cache_file(KERNEL, target.chosen()).parent
    os.utime(own, (0, 0))
    old = old_folder(folder, OLD, 31)
    monkeypatch.setattr(compiler, "_loaded", {})
    compiler.load(KERNEL)
    assert own.stat().st_mtime > time.time() - DAYS
    assert not old.exists()


def test_pruning_survives_what_another_process_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.prune()  # there is no cache at all
    gone = old_folder(folder, OLD, 31)

    def removed_meanwhile(path: Path) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(shutil, "rmtree", removed_meanwhile)
    compiler.prune()
    assert gone.exists()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="there are no links here")
def test_pruning_follows_no_link(folder: Path, tmp_path: Path) -> None:
    kept = old_folder(tmp_path / "elsewhere", OLD, 400)
    folder.mkdir(mode=0o700)
    (folder / OLD).symlink_to(kept, target_is_directory=True)
    compiler.prune()
    assert (kept / "matvec.q4_0.o").exists()
