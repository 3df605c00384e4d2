"""The public API over a fake backend: texts, streams, settings, and what load checks."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.fake_model import BOS, EOS, VOCAB_SIZE, ByteTokenizer, FakeModel, next_token

import pyrllama
from pyrllama.core import FinishReason, Sampling
from pyrllama.errors import (
    ModelNotFoundError,
    PromptError,
    PromptTooLongError,
    SettingError,
    TokenizerError,
)
from pyrllama.llama import Llama
from pyrllama.loading import context_length, parse_weight_type
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path


def fake_llama(*, script: dict[int, int] | None = None, bos_id: int | None = BOS) -> Llama:
    """Return a Llama of 64 tokens of context whose text is a function of the prompt."""
    return Llama(FakeModel(script=script), ByteTokenizer(bos_id=bos_id), max_seq_len=64)


def expected(prompt: list[int], count: int) -> str:
    """Return the text that the fake model continues a prompt with."""
    text = list(prompt)
    for _ in range(count):
        text.append(next_token(text))
    return bytes(text[len(prompt) :]).decode()


def test_generate_gives_text_tokens_and_timings() -> None:
    llama = fake_llama()
    completion = llama.generate("Once", temperature=0, max_tokens=9)
    prompt = [BOS, *b"Once"]
    assert completion.text == expected(prompt, 9)
    assert bytes(completion.tokens).decode() == completion.text
    assert completion.prompt_tokens == tuple(prompt)
    assert len(completion.logprobs) == 9
    assert completion.finish is FinishReason.LENGTH
    assert completion.timings.prompt_tokens == 5
    assert completion.timings.generated_tokens == 9


def test_a_stream_gives_the_same_text_piece_by_piece() -> None:
    llama = fake_llama()
    whole = llama.generate("Once", temperature=0)
    tokens = list(llama.stream("Once", temperature=0))
    assert "".join(token.text for token in tokens) == whole.text
    assert tuple(token.id for token in tokens) == whole.tokens
    assert [token.finish for token in tokens] == [None] * 58 + [FinishReason.LENGTH]


def test_token_ids_are_taken_as_they_are() -> None:
    llama = fake_llama()
    tokens = np.array([1, 2, 3])
    assert llama.generate(tokens.tolist(), temperature=0).prompt_tokens == (1, 2, 3)
    assert llama.generate((4,), temperature=0).prompt_tokens == (4,)


@pytest.mark.parametrize("empty", ["", [], ()])
def test_an_empty_prompt_starts_from_bos(empty: Any) -> None:
    assert fake_llama().generate(empty, temperature=0, max_tokens=3).prompt_tokens == (BOS,)


@pytest.mark.parametrize("empty", ["", []])
def test_an_empty_prompt_needs_a_bos_token(empty: Any) -> None:
    with pytest.raises(PromptError, match="no BOS token"):
        fake_llama(bos_id=None).generate(empty)


@pytest.mark.parametrize("end", [EOS, BOS])
def test_the_end_of_text_is_a_token_without_text(end: int) -> None:
    completion = fake_llama(script={7: end}).generate("Once", temperature=0)
    assert completion.finish is FinishReason.STOP
    assert completion.tokens[-1] == end
    assert completion.text == expected([BOS, *b"Once"], 2)


def test_a_character_is_never_cut() -> None:
    llama = fake_llama(script={5 + i: byte for i, byte in enumerate("é🦙".encode())})
    tokens = list(llama.stream("Once", temperature=0, max_tokens=6))
    assert [token.text for token in tokens] == ["", "é", "", "", "", "🦙"]


def test_a_character_that_stays_incomplete_is_flushed_with_the_last_token() -> None:
    llama = fake_llama(script={5: 0xF0, 6: 0x9F})
    tokens = list(llama.stream("Once", temperature=0, max_tokens=2))
    assert [token.text for token in tokens] == ["", "\N{REPLACEMENT CHARACTER}"]
    assert tokens[-1].finish is FinishReason.LENGTH


def test_a_token_beyond_the_tokenizer_has_no_text() -> None:
    tokenizer = ByteTokenizer(bos_id=None, add_bos=False)
    tokenizer.vocab_size = 256
    llama = Llama(FakeModel(script={4: BOS}), tokenizer, max_seq_len=64)
    completion = llama.generate("Once", temperature=0, max_tokens=2)
    assert completion.tokens[0] == BOS
    assert len(completion.text) == 1


def test_closing_a_stream_early_frees_the_cache() -> None:
    llama = fake_llama()
    stream = llama.stream("Once", temperature=0)
    first = next(stream)
    assert llama._engine.free_blocks == 7
    stream.close()
    assert llama._engine.free_blocks == 8
    completion = stream.completion()
    assert completion.text == first.text
    assert completion.finish is FinishReason.CANCELLED
    with pytest.raises(StopIteration):
        next(stream)


def test_dropping_a_stream_frees_the_cache() -> None:
    llama = fake_llama()
    for _ in llama.stream("Once", temperature=0):
        break
    assert llama._engine.free_blocks == 8
    assert not llama._engine.busy


def test_two_streams_side_by_side_do_not_mix() -> None:
    llama = fake_llama()
    alone = [llama.generate(text, temperature=0, max_tokens=20).text for text in ("One", "Two")]
    first = llama.stream("One", temperature=0, max_tokens=20)
    second = llama.stream("Two", temperature=0, max_tokens=20)
    pieces: list[list[str]] = [[], []]
    pieces[0] += [next(first).text for _ in range(7)]
    pieces[1] += [token.text for token in second]
    pieces[0] += [token.text for token in first]
    assert ["".join(piece) for piece in pieces] == alone
    assert first.completion().finish is FinishReason.LENGTH


def test_settings_override_the_sampling() -> None:
    llama = fake_llama()
    sampling = Sampling(temperature=5.0, seed=3)
    completion = llama.generate("Once", sampling=sampling, temperature=0)
    assert completion.text == expected([BOS, *b"Once"], 59)
    assert completion.seed == 3


def test_the_seed_that_was_drawn_reproduces_the_text() -> None:
    llama = fake_llama()
    first = llama.generate("Once", temperature=50.0, top_k=0)
    again = llama.generate("Once", temperature=50.0, top_k=0, seed=first.seed)
    assert again.text == first.text
    assert again.logprobs == first.logprobs


def test_an_unknown_setting_is_a_type_error() -> None:
    settings: Any = {"temprature": 0}
    with pytest.raises(TypeError, match="temprature"):
        fake_llama().generate("Once", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_a_setting_outside_its_range_is_an_error(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        fake_llama().stream("Once", **settings)


def test_errors_of_the_prompt_come_before_the_first_token() -> None:
    llama = fake_llama()
    with pytest.raises(PromptTooLongError, match="101 tokens, but the context holds 64"):
        llama.stream("x" * 100)
    with pytest.raises(PromptError, match="token 258 at position 1"):
        llama.stream([1, VOCAB_SIZE])
    assert llama.generate("x" * 62, temperature=0).timings.generated_tokens == 1


def test_tokenize_adds_bos_as_the_model_expects() -> None:
    llama = fake_llama()
    assert llama.tokenize("ab") == [BOS, 97, 98]
    assert llama.tokenize("ab", bos=False) == [97, 98]
    assert llama.detokenize([BOS, 97, 98]) == "ab"


def test_logits_are_those_of_every_token() -> None:
    logits = fake_llama().logits([1, 2, 3])
    assert logits.shape == (3, VOCAB_SIZE)
    assert logits[-1].argmax() == next_token([1, 2, 3])


def test_leaving_the_context_closes_the_model() -> None:
    with fake_llama() as llama:
        stream = llama.stream("Once")
        next(stream)
    assert isinstance(llama.model, FakeModel)
    assert llama.model.closed
    assert stream.completion().finish is FinishReason.CANCELLED


def test_names_of_weight_types() -> None:
    assert parse_weight_type(None) is None
    assert parse_weight_type("Q4_0") is TensorType.Q4_0
    assert parse_weight_type(TensorType.BF16) is TensorType.BF16
    for wrong in ("q4", TensorType.Q6_K):
        with pytest.raises(SettingError, match="one of f32, f16, bf16, q8_0, q4_0"):
            parse_weight_type(wrong)


def test_the_context_is_the_models_or_1024() -> None:
    config = FakeModel().config  # of 4096 tokens
    assert context_length(config, None) == 1024
    assert context_length(config, 4096) == 4096
    for wrong in (4097, 0, -1):
        with pytest.raises(SettingError, match=f"max_seq_len is {wrong}, .* context of 4096"):
            context_length(config, wrong)


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, pyrllama; "
        "heavy = {'numpy', 'numba', 'click', 'rich', 'tokenizers', 'tiktoken', 'sentencepiece', "
        "'safetensors', 'ml_dtypes'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [*pyrllama.__all__])
def test_every_name_of_the_api_is_there(name: str) -> None:
    assert getattr(pyrllama, name).__class__ is not ModuleType


def test_no_other_name_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lama'"):
        _ = pyrllama.lama


def test_how_many_streams_the_cache_holds() -> None:
    llama = fake_llama()  # of 8 blocks of 32 tokens
    assert llama.most_streams("Once") == 4
    assert llama.most_streams("Once", max_tokens=20) == 8
    assert llama.most_streams([BOS] * 33, max_tokens=20) == 7
    with pytest.raises(PromptTooLongError, match="64 tokens, but the context holds 64"):
        llama.most_streams("x" * 63)
    with pytest.raises(SettingError, match="max_tokens is 0"):
        llama.most_streams([BOS] * 33, max_tokens=0)


class TestLoad:
    """``pyrllama.load`` on a small trained model."""

    def test_text_from_a_checkpoint(self, data: Path) -> None:
        path = data / "models" / "stories260K.bin"
        with pyrllama.load(path, backend="reference") as llama:
            assert (llama.config.dim, llama.max_seq_len) == (64, 512)
            completion = llama.generate("", temperature=0, max_tokens=20)
            assert completion.prompt_tokens == (1,)
            assert completion.text.startswith("Once upon a time, there was a little girl")

    def test_generating_equals_scoring_again(self, data: Path) -> None:
        path = data / "models" / "stories260K.bin"
        with pyrllama.load(path, backend="reference") as llama:
            completion = llama.generate("Tom had a", temperature=0, max_tokens=80)
            text = completion.prompt_tokens + completion.tokens
            logits = llama.logits(text[:-1])[len(completion.prompt_tokens) - 1 :]
        shifted = logits - logits.max(axis=1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        assert logits.argmax(axis=1).tolist() == list(completion.tokens)
        chosen = logprobs[np.arange(80), completion.tokens]
        np.testing.assert_allclose(chosen, completion.logprobs, atol=1e-4)

    def test_weights_are_converted(self, data: Path) -> None:
        path = data / "models" / "stories260K.bin"
        logits = []
        for quantize in (None, "f32", "bf16", TensorType.Q8_0):
            with pyrllama.load(path, backend="reference", quantize=quantize) as llama:
                logits.append(llama.logits([1, 300, 20])[-1])
        np.testing.assert_array_equal(logits[0], logits[1])
        for other in logits[2:]:
            assert 0 < np.abs(other - logits[0]).max() < 1.0

    @pytest.mark.parametrize(
        ("texts", "text_tokens", "n_blocks"), [(1, None, 16), (3, None, 48), (3, 9, 20)]
    )
    def test_room_for_several_texts(
        self, data: Path, texts: int, text_tokens: int | None, n_blocks: int
    ) -> None:
        path = data / "models" / "stories260K.bin"
        settings: Any = {"texts": texts, "text_tokens": text_tokens}
        with pyrllama.load(path, backend="reference", **settings) as llama:
            assert (llama.model.n_blocks, llama.max_seq_len) == (n_blocks, 512)
            assert llama.most_streams("Once", max_tokens=text_tokens) >= texts

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"quantize": "q5"}, "quantize is 'q5'"),
            ({"max_seq_len": 513}, "max_seq_len is 513, .* context of 512"),
            ({"max_seq_len": 0}, "max_seq_len is 0"),
            ({"threads": 0}, "threads is 0"),
            ({"texts": 0}, "texts is 0"),
            ({"texts": 2, "text_tokens": 0}, "text_tokens is 0"),
            ({"backend": "gpu"}, "backend is 'gpu', but it must be one of cpu, opencl, reference"),
        ],
    )
    def test_bad_settings(self, data: Path, settings: Any, message: str) -> None:
        path = data / "models" / "stories260K.bin"
        with pytest.raises(SettingError, match=message):
            pyrllama.load(path, **{"backend": "reference", **settings})

    def test_a_missing_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="nowhere"):
            pyrllama.load(tmp_path / "nowhere")

    def test_a_tokenizer_of_another_model(self, data: Path) -> None:
        wrong = data / "tokenizers" / "llama2" / "tokenizer.model"
        with pytest.raises(TokenizerError, match="32000"):
            pyrllama.load(
                data / "models" / "stories260K.bin", tokenizer_path=wrong, backend="reference"
            )


def test_the_type_of_the_cache_is_a_setting() -> None:
    with pytest.raises(SettingError, match=r"kv_type is 'q2_k', .* one of f16, f32, q8_0"):
        pyrllama.load(kv_type="q2_k")
