"""A trained model, from the file to the text that its author's own test expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentencepiece import SentencePieceProcessor
from support.tiny_models import GOLDEN, greedy

from pyrllama.checkpoints.llama2c import Llama2cCheckpoint
from pyrllama.reference import ReferenceModel

if TYPE_CHECKING:
    from pathlib import Path

BOS = 1
N_TOKENS = 200


def test_greedy_text_equals_what_llama2_c_expects(data: Path) -> None:
    with Llama2cCheckpoint(data / "models" / "stories260K.bin") as checkpoint:
        model = ReferenceModel.from_checkpoint(checkpoint, n_blocks=8)
    generated = greedy(model, [BOS], N_TOKENS)
    tokenizer = SentencePieceProcessor(str(data / "models" / "tok512.model"))
    expected = (GOLDEN / "stories260K.txt").read_text(encoding="utf-8")
    assert tokenizer.decode(generated) == expected
