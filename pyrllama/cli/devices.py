"""``rllama devices``: the OpenCL devices of this machine and what each can do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from pyrllama.cli.terminal import stdout
from pyrllama.units import format_bytes

if TYPE_CHECKING:
    from pyrllama.opencl import Device

EPILOG = """\b
Examples:
  rllama devices
  rllama --opencl-device 0 --model-path model.gguf --prompt "Snow is"

Without --opencl-device, --backend opencl takes the device that PYOPENCL_CTX names, else the GPU
with the most memory, else the first device.
"""


@click.command(epilog=EPILOG, short_help="List the OpenCL devices.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def devices(as_json: bool) -> int:
    """List every OpenCL device: its number, memory, driver, and what it was seen to do."""
    from pyrllama.opencl import list_devices  # noqa: PLC0415 - an optional package

    found = [describe(device) for device in list_devices()]
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found)
    return 0


def describe(device: Device) -> dict[str, Any]:
    """Return a device as plain values; its features are found by trial."""
    from pyrllama.opencl.features import features  # noqa: PLC0415 - an optional package

    return {
        "number": device.number,
        "name": device.name,
        "platform": device.platform,
        "driver": device.driver,
        "memory_bytes": device.memory,
        "largest_buffer_bytes": device.max_buffer,
        "local_memory_bytes": device.local_memory,
        "compute_units": device.compute_units,
        "features": [feature.value for feature in sorted(features(device))],
    }


def _print(found: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "device", "platform", "driver", "memory", "units", "features"):
        table.add_column(column, overflow="fold")
    for device in found:
        table.add_row(
            str(device["number"]),
            device["name"],
            device["platform"],
            device["driver"],
            format_bytes(device["memory_bytes"]),
            str(device["compute_units"]),
            ", ".join(device["features"]) or "-",
        )
    stdout().print(table)
