"""The model in the box: a small teller of stories; ``MODEL_CARD.md`` beside it describes it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pyrllama.errors import ModelNotFoundError

FILE_NAME = "stories.gguf"


def default_model_path() -> Path:
    """Return where the packaged model lies.

    Raises ``ModelNotFoundError`` where the package was installed without it, or is imported
    out of an archive: a model is mapped into memory and so must be a file of its own.
    """
    resource = files(__name__) / FILE_NAME
    path = Path(str(resource))
    if not path.is_file():
        raise ModelNotFoundError(
            path,
            "the model that comes with the package is not there; install the package again from "
            "its wheel, or name a model with --model-path",
        )
    return path
