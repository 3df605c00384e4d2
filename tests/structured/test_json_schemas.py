"""Instances that the schemas of llama.cpp's converter tests allow, and others that they do not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_model import EOS, ByteTokenizer

from pyrllama.errors import StructureError
from pyrllama.structured import Constraint, Vocabulary, read_structure

if TYPE_CHECKING:
    from pathlib import Path

INSTANCES: dict[str, tuple[list[str], list[str]]] = {
    "min 0": (["0", "7", "123"], ["-1", "01", "x", "1.5"]),
    "min 1": (["1", "10"], ["0", "-3"]),
    "min 3": (["3", "12", "29"], ["2", "0", "-4"]),
    "min 9": (["9", "10", "99"], ["8", "1"]),
    "min 10": (["10", "99", "100"], ["9", "1"]),
    "min 25": (["25", "30", "100"], ["24", "9"]),
    "max 30": (["30", "0", "-99"], ["31", "300"]),
    "min -5": (["-5", "0", "9"], ["-6", "-10"]),
    "min -123": (["-123", "-9", "4"], ["-124", "-1234"]),
    "max -5": (["-5", "-60"], ["-4", "0", "5"]),
    "max 1": (["1", "-7"], ["2", "10"]),
    "max 100": (["100", "99", "-5"], ["101", "1000"]),
    "min 0 max 23": (["0", "23"], ["24", "-1"]),
    "min 15 max 300": (["15", "99", "300"], ["14", "301"]),
    "min 5 max 30": (["5", "30"], ["4", "31"]),
    "min -123 max 42": (["-123", "42"], ["-124", "43"]),
    "min -10 max 10": (["-10", "0", "10"], ["11", "-11"]),
    "empty schema (object)": (["{}", "[1]", '"x"', "null", "1.5e3"], ["{", "nul", "x"]),
    "string": (['""', '"a\\nb"', '"é"'], ["a", '"a', '"\n"']),
    "string w/ min length 1": (['"a"', '"ab"'], ['""']),
    "string w/ min length 3": (['"abc"'], ['"ab"']),
    "string w/ max length": (['""', '"abc"'], ['"abcd"']),
    "string w/ min & max length": (['"a"', '"abcd"'], ['""', '"abcde"']),
    "boolean": (["true", "false"], ["True", "0"]),
    "integer": (["0", "-12"], ["1.5", "01"]),
    "string const": (['"foo"'], ['"bar"', "foo"]),
    "non-string const": (["123"], ["12", "1234"]),
    "non-string enum": (['"red"', "null", "42", '["foo"]'], ['"blue"', "43"]),
    "array with empty items": (["[]", '[1,"a",{}]'], ["{}", "[1"]),
    "number": (["1", "-1.5", "1e9"], ["1.", ".5", '"1"']),
    "simple regexp": (['"abefgkl"', '"abcddefgghijkl"'], ['"kl"', '"abefgk"']),
    "regexp escapes": (['"[]{}()|+*?"'], ['"[]"']),
    "regexp quote": (['"\\""'], ['"a"']),
    "regexp": (['"(123)456-7890 aaaand..."', '"456-7890 aaandxyz"'], ['"456-7890"']),
    "required props in original order": (
        ['{"b":"","c":"x","a":"y"}'],
        ['{"b":""}', '{"a":"","b":"","c":""}', '{"b":"","c":"","a":"","d":1}'],
    ),
    "1 optional prop": (["{}", '{"a":"x"}'], ['{"b":"x"}', '{"a":1}']),
    "N optional props": (["{}", '{"a":"","c":""}'], ['{"c":"","a":""}', '{"d":""}']),
    "additional props": (["{}", '{"x":[1,2]}'], ['{"x":"y"}', '{"x":1}']),
    "additional props (true)": (['{"x":"y"}'], ["[]"]),
    "empty w/o additional props": (["{}"], ['{"a":1}']),
    "required + additional props": (['{"a":1,"b":"x"}'], ['{"b":"x"}', '{"a":1,"b":2}']),
    "top-level $ref": (['{"a":"x"}'], ["{}", '{"a":1}']),
    "anyOf": (['{"a":1}', '{"b":2,"a":"x"}'], ['{"a":"x","b":"y"}', "[]"]),
    "anyOf $ref": (['{"a":1,"b":"x"}', '{"b":true}'], ['{"a":true}']),
    "allOf with enum schema": (['"a"', '"b"'], ['"c"']),
    "allOf with multiple enum schemas": (['"b"', '"c"'], ['"a"', '"d"']),
    "conflicting names": (['{"number":{"number":{"root":1}}}'], ['{"number":1}', "{}"]),
    "description only (no type) treated as unconstrained": (["1", '"x"'], ["{"]),
    "regexp with non-capturing group": (['"foobaz"', '"barbaz"'], ['"foobar"']),
    "regexp with nested non-capturing groups": (['"ababcd"', '"d"'], ['"abd"']),
}
"""For the name of a case, texts that match its schema and texts that do not."""

VOCABULARY = Vocabulary(ByteTokenizer())


def accepts(constraint: Constraint, text: str) -> bool:
    """Tell whether a text, byte by byte, is allowed and is a whole match."""
    matcher = constraint.start()
    for byte in text.encode():
        if not matcher.allowed(VOCABULARY.end_id)[byte]:
            return False
        matcher.accept(byte)
    return matcher.complete and bool(matcher.allowed(VOCABULARY.end_id)[EOS])


@pytest.fixture(scope="module")
def schemas(data: Path) -> dict[str, dict[str, Any]]:
    path = data / "vectors" / "json_schema_to_grammar.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return {case["name"]: case for case in cases}


@pytest.mark.parametrize("name", INSTANCES)
def test_instances(schemas: dict[str, dict[str, Any]], name: str) -> None:
    structure = read_structure(schemas[name]["schema"])
    assert structure is not None
    constraint = Constraint(structure, VOCABULARY, frozenset({EOS}))
    valid, invalid = INSTANCES[name]
    assert [text for text in valid if not accepts(constraint, text)] == []
    assert [text for text in invalid if accepts(constraint, text)] == []


def test_what_the_converter_must_refuse_is_refused(schemas: dict[str, dict[str, Any]]) -> None:
    refused = [case for case in schemas.values() if case["expect"] == "failure"]
    assert len(refused) == 2
    for case in refused:
        with pytest.raises(StructureError, match="type"):
            read_structure(case["schema"])
