"""Make the GGUF file of a trained checkpoint.

``python -m training.export CHECKPOINT TOKENIZER OUT ``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyrllama.checkpoints import open_checkpoint
from pyrllama.convert import export_gguf
from pyrllama.tensors import TensorType
from training.requests import CHAT_TEMPLATE

ABOUT = {
    "general.name": "pyrllama stories",
    "general.description": "A small teller of simple stories in English",
    "general.license": "apache-2.0",
    "general.languages": ["en"],
    "general.size_label": "5.4M",
    "tokenizer.chat_template": CHAT_TEMPLATE,
}


def main() -> None:
    """Read the arguments and convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with open_checkpoint(arguments.checkpoint) as checkpoint:
        export_gguf(checkpoint, arguments.tokenizer, arguments.out, TensorType.Q8_0, metadata=ABOUT)


if __name__ == "__main__":
    main()
