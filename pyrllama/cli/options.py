"""Options that more than one command has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyrllama.errors import SettingError
from pyrllama.loading import Backend, parse_weight_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.tensors import TensorType

    Decorator = Callable[[Callable[..., int]], Callable[..., int]]

PATH = click.Path(path_type=Path)

QUANTIZE_HELP = "Convert the weights at load; without it they keep the checkpoint's own type."


def threads_option(*names: str) -> Decorator:
    """Return the option that bounds the threads, under each of ``names``."""
    return click.option(
        *names, "threads", type=int, help="Threads to use; by default one for every core."
    )


def memory_option() -> Decorator:
    """Return the option that loads a model which may not fit into memory."""
    return click.option(
        "--memory-check/--no-memory-check",
        "check_memory",
        default=True,
        help="Refuse a model that cannot fit into the free memory.  [default: refuse]",
    )


def backend_option() -> Decorator:
    """Return the option that chooses the backend."""
    return click.option(
        "--backend",
        type=click.Choice([backend.value for backend in Backend]),
        default=Backend.CPU.value,
        show_default=True,
        envvar="RLLAMA_BACKEND",
        show_envvar=True,
        help="Compiled kernels, an OpenCL device, or the slow NumPy reference.",
    )


def device_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of ``N`` or ``N,M``; raises ``BadParameter`` for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no number of a device, nor several like 0,1; see 'rllama devices'."
        ) from None


def opencl_options() -> tuple[Decorator, Decorator]:
    """Return the options that put a model, or a share of its layers, on OpenCL devices."""
    return (
        click.option(
            "--opencl-device",
            "opencl_devices",
            type=device_numbers,
            metavar="N[,M]",
            help="OpenCL device to use, or several (see 'rllama devices'); means --backend opencl.",
        ),
        click.option(
            "--percentage-to-gpu",
            "gpu_share",
            type=float,
            metavar="SHARE",
            help="Share of the layers on the OpenCL device, 0 to 1; the CPU does the others. "
            "Means --backend opencl.  [default: as many as fit]",
        ),
    )


def chosen_backend(
    backend: str, opencl_devices: tuple[int, ...] | None, gpu_share: float | None
) -> str:
    """Return the backend, which an option about OpenCL devices implies."""
    implied = opencl_devices is not None or gpu_share is not None
    return Backend.OPENCL.value if implied else backend


def chosen_weight_type(quantize: str | None, **flags: bool) -> TensorType | None:
    """Return the one type that ``--quantize`` and ``--f16`` and its like ask for.

    Raises ``SettingError`` when they ask for more than one.
    """
    given = [f"--{name}" for name, on in flags.items() if on]
    names = [name for name, on in flags.items() if on]
    if quantize is not None:
        given.append(f"--quantize {quantize}")
        names.append(quantize)
    if len(given) > 1:
        raise SettingError("the type of the weights", " and ".join(given), "given only once")
    return parse_weight_type(names[0]) if names else None
