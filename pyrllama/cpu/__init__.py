"""The CPU backend: kernels in Python, compiled for the very CPU that they run on.

Reading order: ``vectors.py``, ``isa.py`` (what differs between CPUs), ``layout.py`` and
``matvec.py`` (weights), ``attention.py``, ``step.py`` (a whole forward pass), then
``compiler.py``, ``team.py`` and ``model.py``, which set it in motion.
"""

from __future__ import annotations

from pyrllama.cpu.bandwidth import read_bandwidth
from pyrllama.cpu.model import CpuModel, load_model
from pyrllama.cpu.target import describe as machine
from pyrllama.cpu.team import default_threads

__all__ = ["CpuModel", "default_threads", "load_model", "machine", "read_bandwidth"]
