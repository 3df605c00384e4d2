"""The model in the box: it is there, small, knows its two forms, and says what it always said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.tiny_models import GOLDEN

import pyrllama
from pyrllama import data
from pyrllama.checkpoints import open_checkpoint
from pyrllama.cpu import target
from pyrllama.errors import ModelNotFoundError
from pyrllama.tensors import TensorType
from pyrllama.tokenizer import load_tokenizer

MAX_BYTES = 6_000_000
PROMPT = "Once upon a time"
HELD = (
    "Once upon a time, there was a little boy named Sam. He had a kite. One day, the wind was so "
    "strong that it took the kite up into a tall tree. Sam was sad. A big bird saw him and said, "
    '"Do not cry. I can help you." The bird flew up and got the kite. Sam was very happy.'
)
"""A text that no model has seen: it was written for this test."""
HELD_BITS_PER_BYTE = 0.7176


def test_it_is_there_and_small() -> None:
    path = data.default_model_path()
    assert path.name == "stories.gguf"
    assert path.stat().st_size <= MAX_BYTES
    assert (path.parent / "MODEL_CARD.md").is_file()


def test_a_package_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FILE_NAME", "missing.gguf")
    with pytest.raises(ModelNotFoundError, match=r"missing\.gguf.*--model-path"):
        data.default_model_path()


def test_what_it_is() -> None:
    with open_checkpoint(data.default_model_path()) as checkpoint:
        config = checkpoint.config
        assert (config.architecture, config.vocab_size, config.dim) == ("llama", 2048, 256)
        assert (config.n_layers, config.n_heads, config.n_kv_heads) == (8, 8, 4)
        assert (config.ffn_dim, config.context_length) == (544, 512)
        types = {(len(info.shape), info.type) for info in checkpoint.tensors.values()}
        assert types == {(1, TensorType.F32), (2, TensorType.Q8_0)}
        assert checkpoint.metadata["general.license"] == "apache-2.0"


def test_a_chat_turn_is_control_tokens_around_text() -> None:
    path = data.default_model_path()
    with open_checkpoint(path) as checkpoint:
        template = checkpoint.metadata["tokenizer.chat_template"]
    assert "<|user|>" in template
    assert "<|assistant|>" in template
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("<|user|>A dog.<|assistant|>", bos=True, special=True)
    assert (ids[0], ids[1], ids[-1]) == (1, 3, 4)
    assert tokenizer.decode(ids) == "A dog."
    assert 3 not in tokenizer.encode("<|user|>")


@pytest.mark.parametrize("isa", [isa.name for isa in target.supported()])
def test_the_greedy_story_on_every_instruction_set(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(target.ISA_VARIABLE, isa)
    expected = (GOLDEN / "default_model.txt").read_text(encoding="utf-8")
    with pyrllama.load(data.default_model_path(), quantize="f32") as llama:
        assert PROMPT + llama.generate(PROMPT, temperature=0).text == expected


def test_it_answers_what_was_asked() -> None:
    with pyrllama.load(data.default_model_path()) as llama:
        request = "<|user|>Tell me a story about a dog and a red ball.<|assistant|>"
        prompt = llama.tokenizer.encode(request, bos=True, special=True)
        completion = llama.generate(prompt, temperature=0)
    assert "dog" in completion.text
    assert "red ball" in completion.text
    assert completion.finish == pyrllama.FinishReason.STOP


def test_bits_per_byte_of_a_held_text() -> None:
    with pyrllama.load(data.default_model_path(), quantize="f32") as llama:
        tokens = llama.tokenize(HELD)
        logits = llama.logits(tokens[:-1]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    right = logits[np.arange(len(tokens) - 1), tokens[1:]]
    nats = float((np.log(np.exp(logits).sum(axis=1)) - right).sum())
    measured = nats / math.log(2) / len(HELD.encode())
    assert measured == pytest.approx(HELD_BITS_PER_BYTE, abs=0.0005)
