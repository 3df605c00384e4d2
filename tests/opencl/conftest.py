"""The device that the tests of this folder run on: the one that a run would take."""

from __future__ import annotations

import pytest

from pyrllama.errors import BackendError
from pyrllama.opencl.device import Device, choose_devices


@pytest.fixture(scope="session")
def device() -> Device:
    """Return the default device; its tests are skipped on a machine without one."""
    try:
        return choose_devices()[0]
    except BackendError as error:
        pytest.skip(str(error))
