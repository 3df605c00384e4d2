"""The optional package that does the parsing."""

from __future__ import annotations

import importlib
from typing import Any

from pyrllama.errors import MissingPackageError


def llguidance() -> Any:
    """Return the module; raises ``MissingPackageError`` where it is not installed."""
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise MissingPackageError(
            "JSON schemas, regular expressions and grammars need the package llguidance; install "
            "it with: pip install 'pyrllama[structured]'"
        ) from None
