"""OpenCL programs: sources put together for a model, built for a device, kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from pyrllama import code_cache
from pyrllama.errors import DeviceError
from pyrllama.opencl.device import Device, device_errors, pyopencl
from pyrllama.opencl.layout import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pyrllama.tensors import TensorType

OPTIONS = ("-cl-std=CL1.2", "-cl-mad-enable")
UNOPTIMISED = "-cl-opt-disable"

_TARGET, _HOPPER_TARGET = b".target sm_90,", b".target sm_90a,"
_HOPPER = b"//sm_90a "
"""What makes a comment of a line of PTX for sm_90a; see ``kernels/warpgroup.cl``."""
_LOG_CHARACTERS = 600
BEFORE_TYPES = (
    "primitives",
    "exchange",
    "tensor",
    "sides",
    "common",
    "shares",
    "cache",
    "heads",
    "attention",
    "rows",
    "routing",
    "choice",
    "warpgroup",
    "attention_tiles",
    "attention_tensor",
)
A_TYPE = ("planes", "weights", "product", "decode", "tile", "fragments", "few", "wide", "experts")
"""Sources that are built once for each storage type of a model's weights."""


def cache_folder() -> Path:
    """Return the folder in which built programs are kept."""
    return code_cache.folder() / "opencl"


def source_text(name: str) -> str:
    """Return one of the package's ``.cl`` files."""
    file = resources.files("pyrllama.opencl") / "kernels" / f"{name}.cl"
    return file.read_text(encoding="utf-8")


def model_source(
    defines: Mapping[str, int | str], kinds: Iterable[TensorType], after: str = ""
) -> str:
    """Return the program of a model: its sizes, then all kernels for its types of weights.

    ``after`` is a source that uses them.
    """
    parts = [f"#define {name} {value}\n" for name, value in defines.items()]
    parts += [_marked(name) for name in BEFORE_TYPES]
    for kind in sorted(kinds):
        words: dict[str, int | str] = {
            "KIND(name)": f"name##_{kind.name.lower()}",
            f"KIND_{kind.name}": 1,
        }
        if planes := LAYOUTS[kind].planes:
            words |= planes.defines
        parts += [f"#define {name} {value}\n" for name, value in words.items()]
        parts += [_marked(name) for name in A_TYPE]
        parts += [f"#undef {name.partition('(')[0]}\n" for name in words]
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
    slots: int = 1
    """Work-groups of the grid's second dimension: the experts of a token, or all there are."""

    def enqueue(self, queue: Any, times: int = 1) -> Any:
        """Put the launch into a queue, with ``times`` as many groups; return its event."""
        size = self.groups * times * self.group, self.slots
        return pyopencl().enqueue_nd_range_kernel(queue, self.kernel, size, (self.group, 1))


class Program:
    """A built program on a device, and the context that its buffers belong to."""

    def __init__(
        self, device: Device, context: Any, source: str, options: Sequence[str] = OPTIONS
    ) -> None:
        self.device = device
        self.context = context
        self._program = _build(device, context, source, options)

    def launch(self, name: str, groups: int, group: int, *arguments: Any, slots: int = 1) -> Launch:
        """Make a kernel of its own and set its arguments once."""
        kernel = pyopencl().Kernel(self._program, name)
        kernel.set_args(*arguments)
        return Launch(kernel, groups, group, arguments, slots)


def _build(device: Device, context: Any, source: str, options: Sequence[str]) -> Any:
    """Build from the cached binary, or from source and cache it."""
    cl = pyopencl()
    # PoCL keeps a cache of its own, and asking for a binary makes it compile everything again.
    file = None if device.is_pocl else cache_folder() / f"{_key(device, source, options)}.bin"
    binary = code_cache.read(file) if file else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyOpenCL warns of every message of a compiler
        if binary is not None:
            with contextlib.suppress(cl.Error):  # a driver may refuse what it once made
                return cl.Program(context, [device.handle], [binary]).build()
        try:
            program = compiled(device, context, source, options)
        except cl.RuntimeError as error:
            raise DeviceError(
                f"OpenCL device {device} cannot build the kernels: "
                f"{str(error)[-_LOG_CHARACTERS:]!r}; update its driver ({device.driver}), or run "
                f"without it: --backend cpu"
            ) from error
    if file:
        with device_errors(device, "reading what it built"):
            binary = program.get_info(cl.program_info.BINARIES)[0]
        with contextlib.suppress(OSError):  # what cannot be kept, the next start builds again
            code_cache.write(file, binary)
    return program


def compiled(device: Device, context: Any, source: str, options: Sequence[str]) -> Any:
    """Build a program from source, for sm_90a where it has lines of PTX that need that target."""
    cl = pyopencl()
    program = cl.Program(context, source).build(list(options), cache_dir=False)
    if not device.is_nvidia:
        return program
    ptx = program.get_info(cl.program_info.BINARIES)[0]
    if _HOPPER not in ptx or _TARGET not in ptx:
        return program
    ptx = ptx.replace(_TARGET, _HOPPER_TARGET, 1).replace(_HOPPER, b"")
    return cl.Program(context, [device.handle], [ptx]).build()


def _key(device: Device, source: str, options: Sequence[str]) -> str:
    """Name a program by all that shapes it: its source, the device, the driver, the options."""
    parts = (source, device.platform, device.name, device.version, device.driver, *options)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
