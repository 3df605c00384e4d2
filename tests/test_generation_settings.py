"""What a caller may say of a generation through the API, over a fake model and a trained one."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_model import BOS, EOS, VOCAB_SIZE, ByteTokenizer, FakeModel

import pyrllama
from pyrllama.core import FinishReason, Sampling
from pyrllama.errors import NoTokenLeftError, SettingError, StructureError
from pyrllama.llama import Llama

if TYPE_CHECKING:
    from pathlib import Path


def fake_llama(text: bytes = b"", **settings: Any) -> Llama:
    """Return a Llama that goes on with a text after a prompt of BOS and one byte."""
    script = {2 + i: byte for i, byte in enumerate(text)}
    return Llama(FakeModel(script=script), ByteTokenizer(), 64, model_settings=settings)


def test_a_stop_string_ends_the_text_before_it() -> None:
    llama = fake_llama(b"one two. three. four")
    completion = llama.generate("x", temperature=0, stop=". t")
    assert completion.text == "one two"
    assert completion.finish is FinishReason.STOP
    assert completion.stop_string == ". t"
    assert completion.tokens == tuple(b"one two. t")
    assert llama._engine.free_blocks == 8


def test_a_stream_never_shows_a_part_of_a_stop_string() -> None:
    llama = fake_llama(b"ab END. cd")
    tokens = list(llama.stream("x", temperature=0, stop=["ENDE", "END."]))
    assert [token.text for token in tokens] == ["a", "b", " ", "", "", "", ""]
    assert tokens[-1].finish is FinishReason.STOP
    tokens = list(llama.stream("x", temperature=0, stop="ENDE", max_tokens=6))
    assert [token.text for token in tokens] == ["a", "b", " ", "", "", "END"]
    assert tokens[-1].finish is FinishReason.LENGTH


def test_a_stop_string_counts_from_the_least_length_on() -> None:
    llama = fake_llama(b"a.b.c.d")
    completion = llama.generate("x", temperature=0, stop=".", min_tokens=3)
    assert completion.text == "a.b"


def test_a_stop_string_beside_other_streams() -> None:
    llama = fake_llama(b"ab.cd")
    first = llama.stream("x", temperature=0, stop=".", max_tokens=5)
    second = llama.stream("x", temperature=0, max_tokens=5)
    assert "".join(token.text for token in second) == "ab.cd"
    assert "".join(token.text for token in first) == "ab"
    assert first.completion().finish is FinishReason.STOP
    assert first.completion().tokens == tuple(b"ab.")


def test_the_end_of_a_text_can_be_put_off() -> None:
    llama = fake_llama(bytes([65, 66]) + bytes([67]))
    llama.model._script |= {4: EOS, 5: EOS, 6: EOS}  # type: ignore[attr-defined]
    ended = llama.generate("x", temperature=0, max_tokens=8)
    assert (ended.finish, len(ended.tokens)) == (FinishReason.STOP, 3)
    ended = llama.generate("x", temperature=0, max_tokens=8, min_tokens=4)
    assert (ended.finish, len(ended.tokens)) == (FinishReason.STOP, 5)
    ended = llama.generate("x", temperature=0, max_tokens=8, ignore_eos=True)
    assert (ended.finish, len(ended.tokens)) == (FinishReason.LENGTH, 8)
    assert not {EOS, BOS} & set(ended.tokens)


def test_continuations_side_by_side_can_be_had_again_alone() -> None:
    llama = fake_llama()
    settings: dict[str, Any] = {"temperature": 60.0, "top_k": 0, "max_tokens": 12}
    streams = llama.streams("x", 3, seed=2**64 - 2, **settings)
    next(streams[0])
    assert [len(stream._generation.logprobs) for stream in streams] == [1, 1, 1]
    texts = ["".join(stream._pieces) + "".join(t.text for t in stream) for stream in streams]
    seeds = [stream.completion().seed for stream in streams]
    assert seeds == [2**64 - 2, 2**64 - 1, 0]
    assert len(set(texts)) == 3
    for text, seed in zip(texts, seeds, strict=True):
        assert llama.generate("x", seed=seed, **settings).text == text
    drawn = llama.streams("x", 2, sampling=Sampling(seed=5))
    assert [stream.completion().seed for stream in drawn] == [5, 6]
    fresh = [stream.completion().seed for stream in llama.streams("x", 2)]
    assert fresh[1] == fresh[0] + 1
    with pytest.raises(SettingError, match="n is 0"):
        llama.streams("x", 0)


def test_the_likeliest_tokens_are_reported() -> None:
    llama = fake_llama(b"ab")
    completion = llama.generate("x", temperature=0, max_tokens=2, logprobs=3)
    assert [top.tokens[0] for top in completion.top] == list(b"ab")
    assert all(len(top.tokens) == 3 for top in completion.top)
    assert completion.top[0].chosen == pytest.approx(0.0, abs=1e-6)
    assert completion.top[0].logprobs[1] == pytest.approx(-100, rel=1e-3)
    (token,) = llama.stream("x", temperature=0, max_tokens=1, logprobs=1)
    assert token.top is not None
    assert token.top.tokens == (ord("a"),)
    assert llama.generate("x", temperature=0, max_tokens=2).top == ()


def test_the_models_own_settings_stand_behind_the_callers() -> None:
    llama = fake_llama(b"abc", temperature=0.0, min_tokens=1)
    assert llama.generate("x", max_tokens=3).text == "abc"
    stream = llama.stream("x", top_k=3)
    chosen = stream._generation.request.sampling
    assert chosen == Sampling(temperature=0.0, top_k=3, min_tokens=1)
    stream = llama.stream("x", sampling=Sampling(top_k=9), top_p=0.5)
    assert stream._generation.request.sampling == Sampling(top_k=9, top_p=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": ""}, "stop is ''"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logprobs": 1001}, "logprobs is 1001"),
        ({"banned_tokens": [VOCAB_SIZE]}, f"banned_tokens is 258, .* under {VOCAB_SIZE}"),
        ({"logit_bias": {999: 1.0}}, "is 999"),
        ({"regex": "a", "json_schema": {}}, "given only once"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        fake_llama().stream("x", **settings)


def test_dry_knows_its_breakers() -> None:
    llama = fake_llama()
    stream = llama.stream("x", dry_multiplier=1.0, dry_sequence_breakers=["ab", "\n"])
    assert stream._generation.request.rules.dry_breakers == ((97, 98), (10,))
    assert llama.stream("x")._generation.request.rules.dry_breakers == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_what_a_fake_model_writes_matches(temperature: float) -> None:
    llama = fake_llama()
    pattern = r"(red|blue) [0-9]{3}"
    completion = llama.generate("x", regex=pattern, temperature=temperature, top_k=0, seed=1)
    assert re.fullmatch(pattern, completion.text)
    assert completion.finish is FinishReason.STOP
    assert completion.complete


def test_a_text_that_the_limit_cuts_off_says_so() -> None:
    llama = fake_llama()
    completion = llama.generate("x", regex="[a-z]{10}", max_tokens=4)
    assert completion.finish is FinishReason.LENGTH
    assert not completion.complete
    completion = llama.generate("x", regex="[a-z]{4}", max_tokens=4)
    assert completion.finish is FinishReason.LENGTH
    assert completion.complete


def test_a_text_without_a_token_left_does_not_end_those_beside_it() -> None:
    llama = fake_llama()
    stuck = llama.stream("x", regex="ab", banned_tokens=list(b"b"), temperature=0)
    other = llama.stream("x", temperature=0, max_tokens=9)
    assert next(stuck).text == "a"
    assert len(list(other)) == 9
    with pytest.raises(NoTokenLeftError):
        next(stuck)
    assert stuck.completion().finish is FinishReason.CANCELLED
    assert llama._engine.free_blocks == 8


def test_a_grammar_that_cannot_be_read() -> None:
    with pytest.raises(StructureError, match="the grammar"):
        fake_llama().stream("x", grammar="root ::= b")


@pytest.fixture(scope="module")
def stories(data: Path) -> Llama:
    return pyrllama.load(data / "models" / "stories260K.bin", backend="reference")


class TestTrained:
    """Structures over a small trained model, whose tokenizer puts a space before words."""

    @pytest.mark.parametrize("temperature", [0.0, 1.0, 10.0])
    def test_json_always_parses(self, stories: Llama, temperature: float) -> None:
        schema = {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 10}, "old": {"type": "boolean"}},
            "required": ["name", "old"],
            "additionalProperties": False,
        }
        for seed in range(3):
            completion = stories.generate(
                "A girl: ", json_schema=schema, temperature=temperature, top_k=0, seed=seed
            )
            assert completion.finish is FinishReason.STOP
            value = json.loads(completion.text)
            assert len(value["name"]) <= 10
            assert isinstance(value["old"], bool)

    def test_a_space_at_the_beginning_is_part_of_the_match(self, stories: Llama) -> None:
        for prompt in ("", "Tom"):
            completion = stories.generate(prompt, regex=" was [a-z]{3}", temperature=0)
            assert re.fullmatch(" was [a-z]{3}", completion.text)

    def test_logprobs_are_those_of_the_model(self, stories: Llama) -> None:
        completion = stories.generate("Tom had a", temperature=0, max_tokens=5, logprobs=2)
        for top, logprob, token in zip(
            completion.top, completion.logprobs, completion.tokens, strict=True
        ):
            assert top.tokens[0] == token
            assert top.chosen == pytest.approx(logprob, abs=1e-5)
            assert math.exp(top.logprobs[0]) + math.exp(top.logprobs[1]) <= 1.0
