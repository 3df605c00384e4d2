"""Regular expressions and grammars over every kind of tokenizer, and what is refused of them."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.fake_model import BOS, EOS, VOCAB_SIZE, ByteTokenizer

from pyrllama.core import Sampling, TokenRules
from pyrllama.errors import MissingPackageError, SettingError, StructureError
from pyrllama.sampling import Sampler
from pyrllama.structured import Constraint, Vocabulary, read_structure
from pyrllama.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.tokenizer import Tokenizer

BYTES = Vocabulary(ByteTokenizer())
GBNF = r"""
# a list of things
root  ::= (item "\n")+
item  ::= "- " thing ", " [^,\n]{2,5}
thing ::= "dog" | "cat" | [A-F\x30-\x39]+ | "\u00e9t\u00e9"
"""
LARK = """
start: greeting " " NAME
greeting: "Hello" | "Hi"
NAME: /[A-Z][a-z]{1,8}/
"""


def constraint(vocabulary: Vocabulary = BYTES, **source: Any) -> Constraint:
    structure = read_structure(**source)
    assert structure is not None
    return Constraint(structure, vocabulary, frozenset({EOS}))


def write(rule: Constraint, vocabulary: Vocabulary, seed: int, most: int = 400) -> tuple[str, bool]:
    """Write a text with a model that finds every token as likely as any other."""
    sampling = Sampling(temperature=5.0, top_k=0, seed=seed)
    stop = len(vocabulary.tokens) - 1
    end = EOS if vocabulary is BYTES else stop
    sampler = Sampler(sampling, [], TokenRules(frozenset({end}), constraint=rule))
    random = np.random.default_rng(seed)
    said = b""
    for _ in range(most):
        token, _ = sampler.sample(random.normal(0, 1, stop + 8).astype(np.float32))
        sampler.accept(token)
        if token == end:
            assert sampler.complete
            return said.decode(), True
        said += vocabulary.tokens[token]
    return said.decode("utf-8", "replace"), False


@pytest.mark.parametrize("seed", range(5))
def test_a_regex_is_matched_whole(seed: int) -> None:
    pattern = r"[0-9]{4}-(0[1-9]|1[0-2]): (yes|no|[^ -~]{2})!*"
    text, ended = write(constraint(regex=pattern), BYTES, seed)
    assert ended
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("seed", range(5))
def test_gbnf(seed: int) -> None:
    text, ended = write(constraint(grammar=GBNF), BYTES, seed, 3000)
    *lines, rest = text.split("\n")
    assert rest == "" or not ended
    for line in lines:
        assert re.fullmatch(r"- (dog|cat|[A-F0-9]+|été), [^,\n]{2,5}", line), line


@pytest.mark.parametrize("seed", range(3))
def test_lark(seed: int) -> None:
    text, ended = write(constraint(grammar=LARK), BYTES, seed)
    assert ended
    assert re.fullmatch(r"(Hello|Hi) [A-Z][a-z]{1,8}", text)


@pytest.fixture(
    params=[
        "models/tok512.bin",
        "models/tok512.model",
        "tokenizers/llama2/tokenizer.json",
        "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3",
        "vocab/ggml-vocab-llama-bpe.gguf",
        "vocab/ggml-vocab-llama-spm.gguf",
    ]
)
def tokenizer(data: Path, request: pytest.FixtureRequest) -> Tokenizer:
    path = data / request.param
    if not path.is_file():
        pytest.skip(f"no {request.param}")
    return load_tokenizer(path)


def test_every_kind_of_tokenizer_writes_json_that_fits(tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "tags": {"type": "array", "items": {"enum": ["é", "b c"]}, "maxItems": 2},
            "size": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["name", "tags", "size"],
        "additionalProperties": False,
    }
    vocabulary = Vocabulary(tokenizer)
    structure = read_structure(json_schema=schema)
    assert structure is not None
    end = len(vocabulary.tokens) - 1
    rule = Constraint(structure, vocabulary, frozenset({end}))
    text, ended = write(rule, vocabulary, seed=1)
    assert ended
    value = json.loads(text)
    assert list(value) == ["name", "tags", "size"]
    assert len(value["name"]) <= 12
    assert set(value["tags"]) <= {"é", "b c"}
    assert value["size"] in range(10)


def test_tokens_of_exactly_the_bytes_that_are_wanted(tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer)
    for text in (b"{", b'{"name": "', b" a", b"a\n b", "é".encode(), b"\xff", b'":["'):
        ids = vocabulary.exact_ids(text)
        assert b"".join(vocabulary.tokens[token] for token in ids) == text
    assert vocabulary.exact_ids(b"") == []


def test_breakers_are_found_in_and_across_tokens() -> None:
    class Words(ByteTokenizer):
        vocab_size = 6

        def _token_bytes(self, token: int) -> bytes:
            return [b"ab", b"b", b"xa", b"a", b"cab!", b"c"][token]

    found = Vocabulary(Words()).sequences("ab")
    assert found == [(0,), (4,), (2, 1), (3, 1)]


def test_two_texts_of_one_constraint_do_not_mix() -> None:
    rule = constraint(regex="ab|cd")
    first, second = rule.start(), rule.start()
    first.accept(ord("a"))
    second.accept(ord("c"))
    assert np.flatnonzero(first.allowed(VOCAB_SIZE)).tolist() == [ord("b")]
    assert np.flatnonzero(second.allowed(VOCAB_SIZE)).tolist() == [ord("d")]
    first.accept(ord("b"))
    assert first.complete
    assert np.flatnonzero(first.allowed(VOCAB_SIZE)).tolist() == [EOS]
    assert not second.complete


def test_control_tokens_and_rows_of_padding_never_come() -> None:
    matcher = constraint(regex="(?s:.)+").start()
    allowed = matcher.allowed(VOCAB_SIZE + 50)
    assert not allowed[[BOS, EOS]].any()
    assert not allowed[VOCAB_SIZE:].any()
    assert allowed[ord("a")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"json_schema": "{bad"}, "the json schema: is not JSON: .* line 1 column 2"),
        ({"json_schema": "[1]"}, "must be an object, or true or false"),
        ({"json_schema": {"type": {1, 2}}}, "is not JSON"),
        ({"json_schema": {"type": "kaboom"}}, "Invalid type: kaboom"),
        ({"json_schema": {"not": {}}}, 'Unimplemented keys: \\["not"\\]'),
        ({"json_schema": False}, "Unsatisfiable schema"),
        ({"json_schema": {"pattern": "(", "type": "string"}}, "unclosed group"),
        ({"json_schema": '{"items":' * 300 + "{}" + "}" * 300}, "recursion limit"),
        ({"regex": "(a"}, "the regex: .*unclosed group"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"grammar": 'root ::= "a" b'}, "the grammar: .* Rule 'b' not found"),
        ({"grammar": 'root ::= "a'}, "line 1"),
        ({"grammar": 'root = "a"'}, "Expected ::= at line 1"),
        ({"grammar": "start: missing"}, 'unknown name: "missing"'),
        ({"grammar": "root ::= " + "(" * 5000}, "cannot be read"),
        ({"grammar": r'root ::= "\UFFFFFFFF"'}, "cannot be read"),
        ({"grammar": "x" * (1 << 21)}, "more than 1048576 characters"),
    ],
)
def test_what_cannot_be_used_is_named(source: dict[str, Any], message: str) -> None:
    with pytest.raises(StructureError, match=f"(?s){message}"):
        read_structure(**source)


def test_the_origin_is_named() -> None:
    with pytest.raises(StructureError, match=r"^date\.json: Invalid type"):
        read_structure(json_schema='{"type": "date"}', origin="date.json")


def test_only_one_structure_at_a_time() -> None:
    assert read_structure() is None
    with pytest.raises(SettingError, match="json_schema and regex"):
        read_structure(json_schema="{}", regex="a")


def test_a_token_that_was_not_allowed_is_an_error() -> None:
    matcher = constraint(regex="ab").start()
    with pytest.raises(StructureError, match="cannot be followed"):
        matcher.accept(ord("z"))


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'pyrllama\[structured\]'"):
        read_structure(regex="a")
