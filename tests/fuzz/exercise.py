"""What is done with a damaged file: all that the package does with a whole one.

A named error is a good end.  Anything else goes to the caller: another exception, a warning, a
file that is left behind.
"""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING

from fuzz.seeds import MIXTURE, MODEL, Kind
from support.tiny_models import MemoryCheckpoint, random_weights

from pyrllama.checkpoints import open_checkpoint
from pyrllama.errors import RllamaError, UnsupportedTypeError
from pyrllama.importance import read_importance
from pyrllama.llama import Llama
from pyrllama.loading import Backend, context_length, load_model
from pyrllama.logits_file import LogitsFile
from pyrllama.mixtures import Mixture
from pyrllama.quantize import quantize_checkpoint
from pyrllama.text_chunks import TextChunks
from pyrllama.tokenizer import check_tokenizer, find_tokenizer, load_tokenizer
from pyrllama.tokenizer.to_gguf import chat_template, vocabulary_metadata

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from pyrllama.checkpoints.base import Checkpoint
    from pyrllama.tokenizer import Tokenizer

TEXT = "ab a cab <tool> </s> \u00e9\U0001f999\n\n  1234"
_CONTEXT = 32
_MIXTURES = (
    *(Mixture.F32, Mixture.F16, Mixture.BF16, Mixture.Q8_0, Mixture.Q4_0, Mixture.Q4_K_M),
    *(Mixture.Q6_K, Mixture.IQ4_XS, Mixture.MXFP4),
)
_DEAR = 0.2
"""Share of the checkpoints that go through the CPU backend, which takes longer than the rest."""


class LeftBehindError(Exception):
    """Quantising failed and left something in the folder of its outcome."""


def exercise(kind: Kind, path: Path, outcome: Path, rng: random.Random) -> str | None:
    """Use a file in every way that its kind has; ``outcome`` is an empty folder.

    Returns the message of the error that it was refused with, None where it was not.  Raises
    whatever is no ``RllamaError``.
    """
    try:
        match kind:
            case Kind.CHECKPOINT:
                _use_checkpoint(path, outcome, rng)
            case Kind.TOKENIZER:
                _use_tokenizer(path)
            case Kind.IMPORTANCE:
                _use_importance(path, outcome)
            case Kind.LOGITS:
                _use_logits(path)
    except RllamaError as error:
        return str(error)
    return None


def _use_checkpoint(path: Path, outcome: Path, rng: random.Random) -> None:
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.tensors:
            with suppress(RllamaError):
                checkpoint.read(name)
                checkpoint.release(name)
        config = checkpoint.config
        file = find_tokenizer(path, None, config.vocab_size)
        tokenizer = None
        with suppress(RllamaError):
            tokenizer = load_tokenizer(file, checkpoint.metadata if file == path else None)
            check_tokenizer(tokenizer, config.vocab_size, file)
            _use(tokenizer)
        with suppress(RllamaError):
            _quantize(checkpoint, file, outcome, rng)
        _run(checkpoint, Backend.REFERENCE, tokenizer)
        if rng.random() < _DEAR:
            with suppress(UnsupportedTypeError):
                _run(checkpoint, Backend.CPU, tokenizer)


def _run(checkpoint: Checkpoint, backend: Backend, tokenizer: Tokenizer | None) -> None:
    """Generate two tokens from the last one of the vocabulary."""
    length = context_length(checkpoint.config, min(_CONTEXT, checkpoint.config.context_length))
    model = load_model(
        checkpoint, backend=backend, weight_type=None, max_seq_len=length, threads=1, progress=None
    )
    if tokenizer is None:
        model.close()
        return
    with Llama(model, tokenizer, length) as llama:
        llama.generate([checkpoint.config.vocab_size - 1], max_tokens=2, temperature=0.0)


def _quantize(checkpoint: Checkpoint, tokenizer: Path, folder: Path, rng: random.Random) -> None:
    """Quantise to some type and open what was written; nothing must be left of a failure."""
    target = folder / "quantised.gguf"
    try:
        quantize_checkpoint(checkpoint, tokenizer, target, rng.choice(_MIXTURES), threads=1)
    except RllamaError:
        left = [path.name for path in folder.iterdir()]
        if left:
            raise LeftBehindError(left) from None
        raise
    with open_checkpoint(target):
        target.unlink()


def _use_tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    with suppress(RllamaError):
        _use(tokenizer)
    for vocab_size in (MODEL.vocab_size, min(tokenizer.vocab_size, 2 * MODEL.vocab_size)):
        with suppress(RllamaError):
            vocabulary_metadata(path, vocab_size)
    chat_template(path)


def _use(tokenizer: Tokenizer) -> None:
    for special in (False, True):
        tokenizer.decode(tokenizer.encode(TEXT, bos=True, special=special))
    for token in range(min(tokenizer.vocab_size, 2 * MODEL.vocab_size)):
        tokenizer.token_bytes(token)


def _use_importance(path: Path, folder: Path) -> None:
    importance = read_importance(path)
    target = folder / "quantised.gguf"
    with suppress(RllamaError):
        quantize_checkpoint(
            MemoryCheckpoint(MIXTURE, random_weights(MIXTURE)),
            path.with_name("tokenizer.model"),
            target,
            Mixture.Q4_0,
            importance=importance,
            threads=1,
        )
    for left in folder.iterdir():
        left.unlink()


def _use_logits(path: Path) -> None:
    with closing(LogitsFile(path)) as file:
        text = TextChunks(file.tokens, file.context, file.n_chunks, None)
        for number in range(text.count):
            for rows in file.batches(text, number):
                file.log_probabilities(rows)
