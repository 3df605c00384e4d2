"""The device that the tests of this folder run on: the one that a run would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyrllama.errors import BackendError
from pyrllama.opencl.batch import BatchWords
from pyrllama.opencl.device import Device, choose_devices

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyrllama.core import Batch


@pytest.fixture(scope="session")
def device() -> Device:
    """Return the default device; its tests are skipped on a machine without one."""
    try:
        return choose_devices()[0]
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Batches that the host sends to the device."""
    sent: list[Batch] = []
    fill = BatchWords.fill

    def noting(
        self: BatchWords, batch: Batch, top: int = 0, *, goes_on: bool = False
    ) -> NDArray[np.int32]:
        sent.append(batch)
        return fill(self, batch, top, goes_on=goes_on)

    monkeypatch.setattr(BatchWords, "fill", noting)
    return sent
