"""OpenCL devices: which there are, which one is meant, and what each can do, found by trial."""

from __future__ import annotations

import enum
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pyrllama.errors import BackendError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

CONTEXT_VARIABLE = "PYOPENCL_CTX"
"""PyOpenCL's own way to name a device, respected where none is named otherwise."""
INSTALL = "install PyOpenCL with: pip install 'pyrllama[opencl]'"
DRIVER = (
    "install your device's driver (NVIDIA and AMD bring OpenCL with theirs; for an Intel GPU it is "
    "intel-opencl-icd, for a CPU pocl-opencl-icd or: pip install pocl-binary-distribution)"
)


class Feature(enum.StrEnum):
    """What a device may be able to do beyond OpenCL 1.2; the values are for people."""

    HALF = "half precision"
    INTEGER_DOT = "integer dot product"
    SUBGROUPS = "subgroups"
    INLINE_PTX = "inline PTX"
    TENSOR_CORES = "Tensor Cores"
    WARPGROUPS = "warpgroup products"
    GRID_BARRIER = "waiting across the grid"


@dataclass(frozen=True, slots=True)
class Device:
    """An OpenCL device under the number that ``--opencl-device`` takes; sizes are bytes."""

    number: int
    name: str
    platform: str
    driver: str
    version: str
    memory: int
    max_buffer: int
    local_memory: int
    compute_units: int
    max_group: int
    handle: Any
    """PyOpenCL's own object."""

    @property
    def is_nvidia(self) -> bool:
        """Whether NVIDIA's driver runs it, so that PTX can be tried."""
        return "cl_nv_device_attribute_query" in self.handle.extensions.split()

    @property
    def is_pocl(self) -> bool:
        """Whether PoCL runs it, on the CPU."""
        return self.platform == "Portable Computing Language"

    def __str__(self) -> str:
        return f"{self.number}: {self.name} ({self.platform})"


def pyopencl() -> ModuleType:
    """Import PyOpenCL; raises ``BackendError`` where it, or the loader under it, is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pyopencl as cl  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise BackendError(f"PyOpenCL cannot be imported ({error}); {INSTALL}") from error
    return cl


@cache
def list_devices() -> tuple[Device, ...]:
    """Return every OpenCL device of this machine, numbered from 0.

    Raises ``BackendError`` without PyOpenCL, or without a driver.
    """
    cl = pyopencl()
    try:
        handles = [
            (platform, handle)
            for platform in cl.get_platforms()
            for handle in _devices_of(platform)
        ]
    except cl.Error as error:
        raise BackendError(f"there is no OpenCL driver ({error}); {DRIVER}") from error
    if not handles:
        raise BackendError(f"there is no OpenCL device; {DRIVER}")
    return tuple(_describe(i, *found) for i, found in enumerate(handles))


def _devices_of(platform: Any) -> list[Any]:
    """Return a platform's devices; one whose driver finds none must not hide the others."""
    cl = pyopencl()
    try:
        return list(platform.get_devices())
    except cl.Error:
        return []


def _describe(number: int, platform: Any, handle: Any) -> Device:
    return Device(
        number=number,
        name=handle.name.strip(),
        platform=platform.name.strip(),
        driver=handle.driver_version.strip(),
        version=handle.version.strip(),
        memory=handle.global_mem_size,
        max_buffer=handle.max_mem_alloc_size,
        local_memory=handle.local_mem_size,
        compute_units=handle.max_compute_units,
        max_group=handle.max_work_group_size,
        handle=handle,
    )


def choose_devices(numbers: Sequence[int] | None = None) -> tuple[Device, ...]:
    """Return the devices of these numbers, or where none are named the one to take.

    That is the one that ``PYOPENCL_CTX`` names, else the GPU with the most memory, else the
    first device.  Raises ``DeviceError`` for a number or a name that does not exist.
    """
    devices = list_devices()
    if numbers is None:
        return (_named_by_environment() or _largest(devices),)
    for number in numbers:
        if not 0 <= number < len(devices):
            known = ", ".join(map(str, devices))
            raise DeviceError(f"there is no OpenCL device {number}; those of this machine: {known}")
    twice = [number for i, number in enumerate(numbers) if number in numbers[:i]]
    if twice:
        raise DeviceError(f"device {twice[0]} is named twice; name every OpenCL device once")
    return tuple(devices[number] for number in numbers)


def _named_by_environment() -> Device | None:
    if not os.environ.get(CONTEXT_VARIABLE):
        return None
    cl = pyopencl()
    try:
        handle = cl.create_some_context(interactive=False).devices[0]
    except (cl.Error, RuntimeError, ValueError, IndexError) as error:
        value = os.environ[CONTEXT_VARIABLE]
        raise DeviceError(
            f"{CONTEXT_VARIABLE} is {value!r}, which names no OpenCL device ({error}); see "
            f"'rllama devices', or give --opencl-device"
        ) from error
    return next((device for device in list_devices() if device.handle == handle), None)


def _largest(devices: Sequence[Device]) -> Device:
    cl = pyopencl()
    gpus = [device for device in devices if device.handle.type & cl.device_type.GPU]
    return max(gpus, key=lambda device: device.memory) if gpus else devices[0]


@contextmanager
def device_errors(device: Device, doing: str) -> Iterator[None]:
    """Turn OpenCL's errors into ``DeviceError`` with the device, what failed and the mend."""
    cl = pyopencl()
    try:
        yield
    except MemoryError as error:  # PyOpenCL's own derives from it, or is a bare cl.MemoryError
        raise _out_of_memory(device, doing, error) from error
    except cl.Error as error:
        code = getattr(error, "code", None)
        codes = cl.status_code
        if code in {codes.MEM_OBJECT_ALLOCATION_FAILURE, codes.OUT_OF_RESOURCES}:
            raise _out_of_memory(device, doing, error) from error
        raise DeviceError(
            f"OpenCL device {device} failed while {doing} ({error}); see whether 'rllama devices' "
            f"still lists it, update its driver, or run without it: --backend cpu"
        ) from error


def _out_of_memory(device: Device, doing: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"OpenCL device {device} ran out of memory while {doing} ({error}); put fewer layers on it "
        f"with --percentage-to-gpu, choose a smaller type with --quantize, or lower --max-seq-len"
    )
