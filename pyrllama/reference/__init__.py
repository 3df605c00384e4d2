"""The model in NumPy, slowly and obviously: what every kernel is tested against."""

from __future__ import annotations

from pyrllama.reference.model import ReferenceModel, load_weights

__all__ = ["ReferenceModel", "load_weights"]
