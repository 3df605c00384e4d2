"""Write a GGUF file of random weights at the shape of a real model, to measure speed with.

Speed does not depend on the values of the weights, and real ones may not be passed on.  Without
``--vocabulary`` the file has none, which llama.cpp's ``llama-bench`` accepts; what makes text
needs one of the same size, taken from another GGUF.  Where the type is the name of a mixture, each
matrix has the type that it gets there.  With ``--mixture`` that is meant where a type is called so,
too, as Q6_K; else all have the same.

    python bench/random_gguf.py 1b q4_0 /tmp/1b-q4_0.gguf
    python bench/random_gguf.py 1b q4_0 /tmp/1b-q4_0.gguf --vocabulary Llama-3.2-1B.gguf
    python bench/random_gguf.py 1b q4_k_m /tmp/1b-q4_k_m.gguf --mixture
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.checkpoints.gguf_writer import PendingTensor, write_gguf
from pyrllama.checkpoints.random import SHAPES, RandomCheckpoint
from pyrllama.errors import SettingError
from pyrllama.mixtures import parse_mixture, tensor_types
from pyrllama.quants import WRITABLE

if TYPE_CHECKING:
    from pyrllama.model_config import ModelConfig


TYPES = {type_.name.lower(): type_ for type_ in sorted(WRITABLE)}


def metadata_of(config: ModelConfig) -> dict[str, Any]:
    """Return the keys that any reader of the ``llama`` architecture needs."""
    return {
        "general.architecture": "llama",
        "general.name": "random weights",
        "llama.block_count": config.n_layers,
        "llama.context_length": config.context_length,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "no_vocab",
    }


def vocabulary_of(path: Path, size: int) -> dict[str, Any]:
    """Return a GGUF's keys of its tokenizer; ends the program if it has not ``size`` tokens."""
    file = GgufFile(path)
    try:
        keys = {k: v for k, v in file.metadata.items() if k.startswith("tokenizer.")}
        found = len(keys.get("tokenizer.ggml.tokens", ()))
    finally:
        file.close()
    if found != size:
        sys.exit(f"{path} has {found} tokens, but the shape has {size}")
    return keys


def random_checkpoint(config: ModelConfig, name: str, *, mixture: bool = False) -> RandomCheckpoint:
    """Return a model whose matrices have a type or, also if ``mixture``, those of a mixture.

    Raises ``SettingError`` for a name of neither.
    """
    if name.lower() in TYPES and not mixture:
        return RandomCheckpoint(config, TYPES[name.lower()])
    chosen = parse_mixture(name)
    types = tensor_types(config, RandomCheckpoint(config, chosen.type).tensors, chosen)
    return RandomCheckpoint(config, chosen.type, types=types)


def pending(checkpoint: RandomCheckpoint) -> list[PendingTensor]:
    """Return a model's tensors, to be written."""
    return [
        PendingTensor(info, lambda name=name: iter([checkpoint.read(name).data]))  # type: ignore[misc]
        for name, info in checkpoint.tensors.items()
    ]


def main() -> None:
    """Write the file that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("type", help=f"one of {', '.join(TYPES)}")
    parser.add_argument("path", type=Path)
    parser.add_argument("--mixture", action="store_true", help="the type names a mixture")
    parser.add_argument("--vocabulary", type=Path, help="a GGUF whose tokenizer is copied")
    arguments = parser.parse_args()
    config = SHAPES[arguments.shape]
    metadata = metadata_of(config)
    if arguments.vocabulary:
        metadata |= vocabulary_of(arguments.vocabulary, config.vocab_size)
    try:
        checkpoint = random_checkpoint(config, arguments.type, mixture=arguments.mixture)
    except SettingError as error:
        parser.error(str(error))
    write_gguf(arguments.path, metadata, pending(checkpoint))


if __name__ == "__main__":
    main()
