"""Byte-pair encoding: the merge loop, words, pre-tokenizers and special tokens."""

from __future__ import annotations

import random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.bpe import BytePairTokenizer, merge
from pyrllama.tokenizer.byte_alphabet import spell, unspell
from pyrllama.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer, pre_tokenizer
from pyrllama.tokenizer.special import SpecialTokens

WORDS = PreTokenizer((r"\s+|\S+",))
MERGES = ["a b", "b c", "ab c", "c c", "cc cc", "a a"]


def small_tokenizer(rules: PreTokenizer = WORDS, letters: str = "abcdĠ") -> BytePairTokenizer:
    tokens = [*letters, *(merge.replace(" ", "") for merge in MERGES), "abcd"]
    ranks = {merge: rank for rank, merge in enumerate(MERGES)}
    return BytePairTokenizer(
        {token: i for i, token in enumerate(tokens)} | {"dd": 42},
        lambda left, right: ranks.get(f"{left} {right}"),
        rules,
        control={"<end>": 40, "<|im_end|>": 41, "dd": 42},
        user_defined={"<tool>": 50, "<tool><tool>": 51},
        vocab_size=52,
        kind="small",
        bos_id=None,
        eos_id=40,
        add_bos=True,
    )


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("", []),
        ("d", ["d"]),
        ("abc", ["abc"]),
        ("bc", ["bc"]),
        ("aab", ["a", "ab"]),
        ("aaa", ["aa", "a"]),
        ("ccccc", ["cccc", "c"]),
        ("dabcabd", ["d", "abc", "ab", "d"]),
    ],
)
def test_merges_go_by_rank_and_then_from_the_left(word: str, parts: list[str]) -> None:
    ranks = {merge: rank for rank, merge in enumerate(MERGES)}
    assert merge(list(word), lambda left, right: ranks.get(f"{left} {right}")) == parts


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.text("abcd", max_size=60))
def test_merges_are_those_of_tokenizers(seed: int, word: str) -> None:
    draw = random.Random(seed)
    vocabulary = list("abcd")
    pairs: list[tuple[str, str]] = []
    for _ in range(30):
        pair = (draw.choice(vocabulary), draw.choice(vocabulary))
        if "".join(pair) not in vocabulary:
            pairs.append(pair)
            vocabulary.append("".join(pair))
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    library = tokenizers.models.BPE(vocab={w: i for i, w in enumerate(vocabulary)}, merges=pairs)
    expected = [token.value for token in library.tokenize(word)]
    assert merge(list(word), lambda left, right: ranks.get((left, right))) == expected


def test_a_long_word_takes_no_quadratic_time() -> None:
    parts = merge(
        ["c"] * 100_001, lambda left, right: 0 if left == right and left < "ccc" else None
    )
    assert parts == ["cccc"] * 25_000 + ["c"]


def test_words_never_merge_with_each_other() -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.encode("ab c") == [5, 4, 2]
    assert tokenizer.decode([5, 4, 2]) == "ab c"


def test_a_word_that_is_a_token_wins_where_the_rules_say_so() -> None:
    ignoring = PreTokenizer(WORDS.patterns, ignore_merges=True)
    assert small_tokenizer().encode("abcd") == [7, 3]
    assert small_tokenizer(ignoring).encode("abcd") == [11]
    # But text never becomes a control token, even if its word is spelled like one.
    assert small_tokenizer(ignoring).encode("dd") == [3, 3]


def test_long_words_are_encoded_like_short_ones() -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.encode("abcd" * 40) == [7, 3] * 40
    assert tokenizer.encode("abcd" * 2) == tokenizer.encode("abcd" * 2) == [7, 3] * 2


def test_special_tokens() -> None:
    tokenizer = small_tokenizer(letters="abcdĠ<end>|im_tol")
    assert tokenizer.encode("a<end>b", special=True) == [0, 40, 1]
    assert 40 not in tokenizer.encode("a<end>b")
    assert tokenizer.encode("a<tool><tool><tool>b") == [0, 51, 50, 1]
    assert tokenizer.decode([0, 40, 50, 1]) == "a<tool>b"
    assert tokenizer.stop_ids == {40, 41}
    assert not tokenizer.add_bos


def test_a_byte_without_a_token() -> None:
    with pytest.raises(TokenizerError, match=r"no token for the byte 0x65 of 'dead'"):
        small_tokenizer().encode("dead")


def test_special_tokens_are_split_longest_first() -> None:
    special = SpecialTokens({"<a>": 1, "<a><a>": 2, "(.*)": 3, "": 4})
    assert list(special.split("x<a><a><a>y(.*)")) == ["x", 2, 1, "y", 3]
    assert list(special.split("")) == []
    assert list(SpecialTokens({}).split("<a>")) == ["<a>"]


@settings(max_examples=100, deadline=None)
@given(st.binary())
def test_the_byte_alphabet_is_reversible(data: bytes) -> None:
    assert unspell(spell(data)) == data
    assert spell(data).isprintable()
    assert " " not in spell(data)


def test_the_byte_alphabet_is_that_of_gpt_2() -> None:
    assert spell(b" \n\x00\x7f\xad\xffA") == "ĠĊĀġŃÿA"
    assert len(set(spell(bytes(range(256))))) == 256
    assert unspell("<pad>日") == "<pad>日".encode()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-bpe", ["I", "'ve", " ", " ", "123", "45", " été", "!\n\n", " ", " x"]),
        ("qwen2", ["I", "'ve", " ", " ", "1", "2", "3", "4", "5", " été", "!\n\n", " ", " x"]),
        ("gpt-2", ["I", "'ve", " ", " 12345", " été", "!", "\n\n ", " x"]),
        ("smollm", ["I", "'ve", "  ", "1", "2", "3", "4", "5", " été", "!", "\n\n ", " x"]),
        ("tekken", ["I", "'ve", " ", " ", "1", "2", "3", "4", "5", " été", "!\n\n", " ", " x"]),
    ],
)
def test_words_of_the_pre_tokenizers(name: str, words: list[str]) -> None:
    assert pre_tokenizer(name).split("I've  12345 été!\n\n  x") == words


def test_contractions_and_case() -> None:
    assert pre_tokenizer("llama-bpe").split("IT'SaB") == ["IT", "'S", "aB"]
    assert pre_tokenizer("gpt-2").split("IT'SaB") == ["IT", "'", "SaB"]
    assert pre_tokenizer("tekken").split("camelCaseWORDS") == ["camel", "Case", "WORDS"]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(PRE_TOKENIZERS)), st.text())
def test_words_together_are_the_text(name: str, text: str) -> None:
    words = pre_tokenizer(name).split(text)
    assert "".join(words) == text
    assert "" not in words


@pytest.mark.parametrize("name", [None, "", "default", "llama-4-turbo"])
def test_an_unknown_pre_tokenizer_is_an_error(name: str | None) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.pre .* llama-bpe, .*qwen2"):
        pre_tokenizer(name)
