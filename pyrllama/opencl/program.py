"""OpenCL programs: sources put together for a model, built for a device, kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from pyrllama.errors import DeviceError
from pyrllama.opencl.device import Device, device_errors, pyopencl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pyrllama.core import TensorType

CACHE_VARIABLE = "RLLAMA_CACHE_DIR"
"""Environment variable that names another folder for machine code."""
OPTIONS = ("-cl-std=CL1.2", "-cl-mad-enable")
UNOPTIMISED = "-cl-opt-disable"

_DIGEST_BYTES = 32
_LOG_CHARACTERS = 600
BEFORE_TYPES = ("primitives", "tensor", "common", "shares", "attention", "rows", "attention_tiles")
A_TYPE = ("weights", "product", "decode", "tile")
"""Sources that are built once for each storage type of a model's weights."""


def cache_folder() -> Path:
    """Return the folder in which built programs are kept."""
    named = os.environ.get(CACHE_VARIABLE)
    root = Path(named) if named else Path(platformdirs.user_cache_dir("pyrllama")) / "kernels"
    return root / "opencl"


def source_text(name: str) -> str:
    """Return one of the package's ``.cl`` files."""
    file = resources.files("pyrllama.opencl") / "kernels" / f"{name}.cl"
    return file.read_text(encoding="utf-8")


def model_source(defines: Mapping[str, int], kinds: Iterable[TensorType], after: str = "") -> str:
    """Return the program of a model: its sizes, then all kernels for its types of weights.

    ``after`` is a source that uses them.
    """
    parts = [f"#define {name} {value}\n" for name, value in defines.items()]
    parts += [_marked(name) for name in BEFORE_TYPES]
    for kind in sorted(kinds):
        parts.append(f"#define KIND(name) name##_{kind.name.lower()}\n#define KIND_{kind.name}\n")
        parts += [_marked(name) for name in A_TYPE]
        parts.append(f"#undef KIND\n#undef KIND_{kind.name}\n")
    return "".join(parts) + after


def _marked(name: str) -> str:
    """Return a source that compilers report problems of under its own name and lines."""
    return f'#line 1 "{name}.cl"\n{source_text(name)}\n'


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with its arguments set; ``groups`` work-groups of ``group`` work-items each."""

    kernel: Any
    groups: int
    group: int
    arguments: tuple[Any, ...]
    """Kept, because a kernel does not keep the buffers that it is given."""

    def enqueue(self, queue: Any, times: int = 1) -> None:
        """Put the launch into a queue, with ``times`` as many groups; does not wait."""
        size = self.groups * times * self.group
        pyopencl().enqueue_nd_range_kernel(queue, self.kernel, (size,), (self.group,))


class Program:
    """A built program on a device, and the context that its buffers belong to."""

    def __init__(
        self, device: Device, context: Any, source: str, options: Sequence[str] = OPTIONS
    ) -> None:
        self.device = device
        self.context = context
        self._program = _build(device, context, source, options)

    def launch(self, name: str, groups: int, group: int, *arguments: Any) -> Launch:
        """Make a kernel of its own and set its arguments once."""
        kernel = pyopencl().Kernel(self._program, name)
        kernel.set_args(*arguments)
        return Launch(kernel, groups, group, arguments)


def _build(device: Device, context: Any, source: str, options: Sequence[str]) -> Any:
    """Build from the cached binary, or from source and cache it."""
    cl = pyopencl()
    # PoCL keeps a cache of its own, and asking for a binary makes it compile everything again.
    file = None if device.is_pocl else cache_folder() / f"{_key(device, source, options)}.bin"
    binary = _read(file) if file else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyOpenCL warns of every message of a compiler
        if binary is not None:
            with contextlib.suppress(cl.Error):  # a driver may refuse what it once made
                return cl.Program(context, [device.handle], [binary]).build()
        try:
            program = cl.Program(context, source).build(list(options), cache_dir=False)
        except cl.RuntimeError as error:
            raise DeviceError(
                f"OpenCL device {device} cannot build the kernels: "
                f"{str(error)[-_LOG_CHARACTERS:]!r}; update its driver ({device.driver}), or run "
                f"without it: --backend cpu"
            ) from error
    if file:
        with device_errors(device, "reading what it built"):
            _write(file, program.get_info(cl.program_info.BINARIES)[0])
    return program


def _key(device: Device, source: str, options: Sequence[str]) -> str:
    """Name a program by all that shapes it: its source, the device, the driver, the options."""
    parts = (source, device.platform, device.name, device.version, device.driver, *options)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _read(file: Path) -> bytes | None:
    """Return a cached binary, None if there is none, it is damaged, or others can write there."""
    try:
        if not _is_ours(file.parent):
            return None
        content = file.read_bytes()
    except OSError:
        return None
    digest, binary = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return binary if digest == _digest(binary) else None


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have put a binary into a folder: a driver runs what it is given."""
    if not hasattr(os, "getuid"):
        return True  # Windows keeps a user's cache folder to the user
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _write(file: Path, binary: bytes) -> None:
    """Keep a binary; where the folder cannot be written, the next start builds again."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as out:
            out.write(_digest(binary) + binary)
        Path(name).replace(file)


def _digest(binary: bytes) -> bytes:
    return hashlib.blake2b(binary, digest_size=_DIGEST_BYTES).digest()
