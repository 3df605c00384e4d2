"""From a kernel in Python to machine code on disk and a function that ctypes can call.

A kernel is a Python function of int64 addresses and counts.  Numba turns it into LLVM code,
the definitions of ``isa.py`` are linked in, LLVM optimises the whole for one instruction set,
and the object code is kept in the user's cache folder under a key of everything that shaped
it.  A later start loads the object code through llvmlite alone: it neither imports Numba nor
the kernel's module.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite
import llvmlite.binding as llvm

from pyrllama import code_cache
from pyrllama.core import BLOCK_TOKENS
from pyrllama.cpu import isa as machine
from pyrllama.cpu import target, waiting
from pyrllama.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyrllama.cpu.target import Isa

UNUSED_DAYS = 30
"""After so many days without use the machine code of another version is removed."""

_FOLDER_BYTES = 12
_FOLDER_NAME = re.compile(rf"[0-9a-f]{{{2 * _FOLDER_BYTES}}}")
_loaded: dict[tuple[str, str], Kernel] = {}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Machine code in memory: ``call`` takes ints and releases the GIL while it runs."""

    name: str
    address: int
    call: Callable[..., None]
    keep: Any
    """What must stay referenced for the code to stay mapped."""


def load(name: str, isa: Isa | None = None) -> Kernel:
    """Return a kernel by name (``"step.forward"``), compiling it if the cache lacks it.

    Raises ``BackendError`` when the kernel does not compile to self-contained code.
    """
    isa = isa or target.chosen()
    known = _loaded.get((name, isa.name))
    if known is None:
        known = _loaded[name, isa.name] = _link(name, *_object_code(name, isa), isa)
    return known


def assembly(name: str, isa: Isa) -> str:
    """Return the assembly text of a kernel for an instruction set, which need not be here."""
    module, code_generator, _ = _compile(name, isa)
    return str(code_generator.emit_assembly(module))


# --- the cache on disk ------------------------------------------------------------------------


@cache
def _sources_digest() -> str:
    """Hash everything that shapes machine code apart from the CPU: our sources, the compilers."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(_numba_version())
    digest.update(llvmlite.__version__.encode())
    # The one noun of core.py that is compiled into kernels.
    digest.update(repr((llvm.llvm_version_info, BLOCK_TOKENS)).encode())
    return digest.hexdigest()


def _numba_version() -> bytes:
    """Return what Numba says of its version, without importing it or its metadata's reader."""
    spec = importlib.util.find_spec("numba")
    assert spec is not None  # noqa: S101 - a dependency of the package
    assert spec.origin is not None  # noqa: S101 - it is no namespace
    return Path(spec.origin).with_name("_version.py").read_bytes()


def code_key(isa: Isa | None = None) -> str:
    """Return what tells the machine code of an instruction set from all other code.

    Numbers that two runs computed can be mixed only where it is the same.
    """
    isa = isa or target.chosen()
    cpu, features = target.cpu_and_features(isa)
    key = "\0".join((_sources_digest(), llvm.get_default_triple(), isa.name, cpu, features))
    return hashlib.blake2b(key.encode(), digest_size=_FOLDER_BYTES).hexdigest()


def _cache_file(name: str, isa: Isa) -> Path:
    return code_cache.folder() / code_key(isa) / f"{name}.o"


def _object_code(name: str, isa: Isa) -> tuple[bytes, int]:
    """Return a kernel's object code and the number of its arguments, from the cache or fresh."""
    file = _cache_file(name, isa)
    kept = code_cache.read(file)
    if kept is not None:
        _mark_used(file.parent)
    else:
        module, code_generator, n_arguments = _compile(name, isa)
        kept = bytes([n_arguments]) + code_generator.emit_object(module)
        # A cache that cannot be written costs the next start some seconds and nothing else.
        with contextlib.suppress(OSError):
            new = not file.parent.exists()
            code_cache.write(file, kept)
            if new:
                prune()
    return kept[1:], kept[0]


def prune(days: float = UNUSED_DAYS) -> None:
    """Remove the folders of other versions whose code nobody has loaded for so many days.

    A process that loses files which it has loaded already keeps its code; one that is about to
    load them compiles again.  Failing to remove something costs nothing but its bytes.
    """
    oldest = time.time() - 86_400 * days
    with contextlib.suppress(OSError):
        for folder in code_cache.folder().iterdir():
            if _FOLDER_NAME.fullmatch(folder.name) and not folder.is_symlink():
                with contextlib.suppress(OSError):
                    if folder.stat().st_mtime < oldest and code_cache.is_ours(folder):
                        shutil.rmtree(folder)


def _mark_used(folder: Path) -> None:
    """Note that a folder's code is in use, once a day; the day's first start prunes others."""
    with contextlib.suppress(OSError):
        if folder.stat().st_mtime < time.time() - 86_400:
            os.utime(folder)
            prune()


# --- compiling --------------------------------------------------------------------------------


def _compile(name: str, isa: Isa) -> tuple[llvm.ModuleRef, llvm.TargetMachine, int]:
    """Return a kernel's optimised module, with its entry alone public, and its argument count."""
    module_name, _, function_name = name.rpartition(".")
    function = getattr(importlib.import_module(f"pyrllama.cpu.{module_name}"), function_name)
    llvm_code, inner = _numba_code(function)
    arguments = ", ".join(f"i64 %a{i}" for i in range(function.n_arguments))
    values = "".join(f", i64 %a{i}" for i in range(function.n_arguments))
    llvm_code += f"""
define void @{_symbol(name)}({arguments}) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @{inner}(ptr %result, ptr %error{values})
  ret void
}}
"""
    code_generator = target.target_machine(isa)
    module = llvm.parse_assembly(llvm_code)
    for definitions in (machine.definitions(isa), waiting.definitions()):
        module.link_in(llvm.parse_assembly(definitions))
    for definition in module.functions:
        if not definition.is_declaration and definition.name != _symbol(name):
            definition.linkage = "internal"
    _optimise(module, code_generator)
    _check_self_contained(name, module)
    return module, code_generator, function.n_arguments


def _symbol(name: str) -> str:
    return "rllama_kernel_" + name.replace(".", "_")


def _numba_code(function: Any) -> tuple[str, str]:
    """Return a kernel's LLVM code and the quoted name of its function there."""
    for name in (*machine.SIGNATURES, waiting.SLEEP, waiting.WAKE):
        # Numba links what it compiles; these are never called there, only in our own link.
        llvm.add_symbol(name, 1)
    with _plain_numba():
        result = function.compile()
    return result.library.get_llvm_str(), f'"{result.fndesc.llvm_func_name}"'


def _linked_only(library: Any, _name: str) -> int:
    """Stand in for a function's address: link it with what it calls, and say there is none."""
    library._ensure_finalized()
    return 0


@contextlib.contextmanager
def _plain_numba() -> Iterator[None]:
    """Let Numba make LLVM code and no more of it: our own link optimises and makes the machine's.

    Numba would optimise every function by itself and make machine code of it, which takes half
    of its time.
    """
    from numba.core import config  # noqa: PLC0415 - only a first start imports it
    from numba.core.codegen import JITCodeLibrary, JITCPUCodegen  # noqa: PLC0415

    replaced = [
        (config, "OPT", type(config.OPT)(0)),
        (JITCodeLibrary, "_finalize_specific", lambda _library: None),
        (JITCodeLibrary, "get_pointer_to_function", _linked_only),
        (JITCPUCodegen, "set_env", lambda _codegen, _name, _env: None),
    ]
    asked = [getattr(owner, name) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(replaced, asked, strict=True):
            setattr(owner, name, value)


def _optimise(module: llvm.ModuleRef, code_generator: llvm.TargetMachine) -> None:
    # No automatic vectorisation: kernels say what is a vector, and the rest is not hot.
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = False
    options.slp_vectorization = False
    passes = llvm.create_pass_builder(code_generator, options)
    passes.getModulePassManager().run(module, passes)


_OUTSIDE = frozenset({"memcpy", "memset", "memmove", waiting.SYSTEM_SLEEP, waiting.SYSTEM_WAKE})
"""What a kernel may call: the C library's memory functions, and the system's to wait with."""


def _check_self_contained(name: str, module: llvm.ModuleRef) -> None:
    """Refuse code that would call into Numba's or Python's run time, which is not loaded."""
    for function in module.functions:
        called = function.is_declaration and not function.name.startswith("llvm.")
        if called and function.name not in _OUTSIDE:
            raise BackendError(f"kernel {name} calls {function.name}, which it may not")


# --- loading ----------------------------------------------------------------------------------


def _link(name: str, code: bytes, n_arguments: int, isa: Isa) -> Kernel:
    """Map object code into this process and return its entry."""
    _provide_system_functions()
    engine = _engine(isa)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(_symbol(name))
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * n_arguments)
    return Kernel(name, address, prototype(address), engine)


def _engine(isa: Isa) -> llvm.ExecutionEngine:
    empty = llvm.parse_assembly("")
    return llvm.create_mcjit_compiler(empty, target.target_machine(isa))


@cache
def _provide_system_functions() -> None:
    """Tell LLVM's linker where the system's functions are that kernels wait with."""
    for name, address in waiting.symbols().items():
        llvm.add_symbol(name, address)
