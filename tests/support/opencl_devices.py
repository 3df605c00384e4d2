"""OpenCL devices for tests that need none: what is decided before anything runs on them."""

from __future__ import annotations

from pyrllama.opencl.device import Device


class Handle:
    """PyOpenCL's object of a device without extensions."""

    extensions = ""
    type = 4


def fake_device(number: int = 0, memory: int = 8 << 30, **changes: object) -> Device:
    """Return a plain device of OpenCL 1.2 that nothing can run on; any field may be another."""
    fields: dict[str, object] = {
        "number": number,
        "name": f"Abacus {number}",
        "platform": "Beads",
        "driver": "1.0",
        "version": "OpenCL 1.2",
        "memory": memory,
        "max_buffer": memory // 4,
        "local_memory": 32 << 10,
        "compute_units": 4,
        "max_group": 256,
        "handle": Handle(),
    }
    return Device(**{**fields, **changes})  # type: ignore[arg-type]
