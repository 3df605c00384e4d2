"""The OpenCL backend: the forward pass on any device with OpenCL 1.2, NVIDIA's driven by PTX.

Reading order: ``kernels/primitives.cl`` (what differs between devices), ``kernels/common.cl``,
``kernels/weights.cl`` and ``kernels/product.cl`` (weights), ``kernels/attention.cl`` and
``kernels/attention_tiles.cl``, ``kernels/tile.cl``; ``kernels/routing.cl`` and
``kernels/experts.cl``; for Tensor Cores
``kernels/attention_tensor.cl``, ``kernels/few.cl`` and ``kernels/wide.cl``; then ``device.py``,
``program.py``, ``tuning.py``, ``layout.py``, ``weights.py``, ``steps.py``, ``batch_steps.py``,
``experts.py``, ``parts.py``, ``stage_memory.py``, ``stage.py`` and ``model.py``, which set them in
motion.
"""

from __future__ import annotations

from pyrllama.opencl.device import Device, choose_devices, list_devices
from pyrllama.opencl.model import OpenClModel

__all__ = ["Device", "OpenClModel", "choose_devices", "list_devices"]
