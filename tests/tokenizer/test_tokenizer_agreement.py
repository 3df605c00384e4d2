"""Exact ids of real vocabularies, and the same ids from every form of one tokenizer."""

from __future__ import annotations

import base64
import re
import unicodedata
from typing import TYPE_CHECKING

import pytest
import tiktoken
from support.vocab_cases import VOCABULARIES, published_cases, random_texts, tokenizer_at

from pyrllama.tokenizer.pretokenizers import LLAMA3, QWEN2

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.tokenizer import Tokenizer

TEXTS = random_texts(seed=20230312, count=600)
ASSIGNED = random_texts(seed=7, count=600, assigned=True)


@pytest.fixture(scope="module")
def llama2(data: Path) -> Tokenizer:
    return tokenizer_at(data / "tokenizers" / "llama2" / "tokenizer.model")


@pytest.fixture(scope="module")
def llama3(data: Path) -> Tokenizer:
    return tokenizer_at(data / "tokenizers" / "llama3" / "tokenizer.model")


@pytest.fixture(scope="module")
def qwen(data: Path) -> Tokenizer:
    return tokenizer_at(data / "tokenizers" / "qwen" / "qwen.tiktoken")


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_published_cases(data: Path, vocabulary: str) -> None:
    tokenizer = tokenizer_at(data / "vocab" / f"ggml-vocab-{vocabulary}.gguf")
    cases = published_cases(data, vocabulary)
    assert len(cases) == 46
    assert [tokenizer.encode(text) for text, _ in cases] == [ids for _, ids in cases]
    assert [tokenizer.decode(ids) for _, ids in cases] == [text for text, _ in cases]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    "other", ["tokenizers/llama2/tokenizer.json", "vocab/ggml-vocab-llama-spm.gguf"]
)
def test_forms_of_llama_2_agree(data: Path, llama2: Tokenizer, other: str, special: bool) -> None:
    tokenizer = tokenizer_at(data / other)
    for text in TEXTS:
        assert tokenizer.encode(text, special=special) == llama2.encode(text, special=special)
    assert tokenizer.vocab_size == llama2.vocab_size == 32_000
    ids = range(1, tokenizer.vocab_size)  # Only the unknown token reads differently.
    assert [*map(tokenizer.token_bytes, ids)] == [*map(llama2.token_bytes, ids)]


@pytest.mark.parametrize("special", [False, True])
def test_forms_of_llama_3_agree(data: Path, llama3: Tokenizer, special: bool) -> None:
    tokenizer = tokenizer_at(data / "vocab" / "ggml-vocab-llama-bpe.gguf")
    for text in TEXTS:
        assert tokenizer.encode(text, special=special) == llama3.encode(text, special=special)
    ids = range(llama3.vocab_size)
    assert tokenizer.vocab_size == llama3.vocab_size == 128_256
    assert [*map(tokenizer.token_bytes, ids)] == [*map(llama3.token_bytes, ids)]


def test_forms_of_qwen_agree_on_composed_text(data: Path, qwen: Tokenizer) -> None:
    tokenizer = tokenizer_at(data / "vocab" / "ggml-vocab-qwen2.gguf")
    for text in TEXTS:
        assert tokenizer.encode(unicodedata.normalize("NFC", text)) == qwen.encode(text)


def test_forms_of_tok512_agree(data: Path) -> None:
    model = tokenizer_at(data / "models" / "tok512.model")
    exported = tokenizer_at(data / "models" / "tok512.bin")
    assert (model.vocab_size, exported.vocab_size) == (512, 512)
    for text in TEXTS:
        # The model joins runs of spaces, which the exported file does not tell.
        single = re.sub("[ \u2581]+", " ", text).strip()
        assert exported.encode(single) == model.encode(single)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("llama3/tokenizer.model", LLAMA3.patterns[0]), ("qwen/qwen.tiktoken", QWEN2.patterns[0])],
)
def test_byte_pairs_agree_with_tiktoken(data: Path, name: str, pattern: str) -> None:
    file = data / "tokenizers" / name
    lines = [line.split() for line in file.read_bytes().splitlines()]
    library = tiktoken.Encoding(
        "library",
        pat_str=pattern,
        mergeable_ranks={base64.b64decode(coded): int(rank) for coded, rank in lines},
        special_tokens={},
    )
    tokenizer = tokenizer_at(file)
    for text in ASSIGNED:
        composed = unicodedata.normalize("NFC", text)  # Qwen's own code does so as well.
        assert tokenizer.encode(composed) == library.encode_ordinary(composed)


def test_every_form_gives_the_text_back(
    data: Path, llama2: Tokenizer, llama3: Tokenizer, qwen: Tokenizer
) -> None:
    spm = tokenizer_at(data / "vocab" / "ggml-vocab-llama-spm.gguf")
    qwen2 = tokenizer_at(data / "vocab" / "ggml-vocab-qwen2.gguf")
    for text in TEXTS:
        for tokenizer in (llama3, qwen2):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        composed = unicodedata.normalize("NFC", text)
        assert qwen.decode(qwen.encode(text)) == composed
        # SentencePiece writes spaces as U+2581 and cannot tell the two apart.
        plain = text.replace("\u2581", " ")
        for tokenizer in (llama2, spm):
            assert tokenizer.decode(tokenizer.encode(text)) == plain


def test_real_text_is_told_exactly(data: Path, llama2: Tokenizer, llama3: Tokenizer) -> None:
    text = (data / "text" / "wiki.valid.raw").read_text(encoding="utf-8")[:200_000]
    for tokenizer in (llama2, llama3):
        assert tokenizer.decode(tokenizer.encode(text, bos=True)) == text


def test_what_the_tokenizers_say_of_themselves(
    data: Path, llama2: Tokenizer, llama3: Tokenizer, qwen: Tokenizer
) -> None:
    def facts(tokenizer: Tokenizer) -> tuple[object, ...]:
        stop = sorted(tokenizer.stop_ids)
        return tokenizer.kind, tokenizer.bos_id, tokenizer.eos_id, stop, tokenizer.add_bos

    def load(path: str) -> Tokenizer:
        return tokenizer_at(data / path)

    assert facts(llama2) == ("SentencePiece BPE", 1, 2, [2], True)
    assert facts(llama3) == (
        "tiktoken BPE (Llama 3)",
        128_000,
        128_001,
        [128_001, 128_008, 128_009],
        True,
    )
    assert facts(qwen) == ("tiktoken BPE (Qwen)", None, 151_643, [151_643, 151_645], False)
    json = facts(load("tokenizers/llama2/tokenizer.json"))
    assert json == ("tokenizer.json", 1, 2, [2], True)
    assert facts(load("models/tiny-random-llama-hf")) == json
    assert facts(load("models/tok512.bin")) == ("llama2.c", 1, 2, [2], True)
    spm = facts(load("vocab/ggml-vocab-llama-spm.gguf"))
    assert spm == ("GGUF SentencePiece BPE", 1, 2, [2], True)
    bpe = facts(load("vocab/ggml-vocab-llama-bpe.gguf"))
    assert bpe == ("GGUF llama-bpe", 128_000, 128_001, [128_001, 128_009], True)
    qwen2 = facts(load("vocab/ggml-vocab-qwen2.gguf"))
    assert qwen2 == ("GGUF qwen2", 151_643, 151_643, [151_643, 151_645], False)


def test_special_tokens_are_text_unless_asked_for(llama2: Tokenizer, llama3: Tokenizer) -> None:
    text = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert llama3.encode(text, special=True) == [128_006, 882, 128_007, 271, 13_347, 128_009]
    assert max(llama3.encode(text)) < 128_000
    assert llama3.decode(llama3.encode(text)) == text
    assert llama3.decode(llama3.encode(text, special=True)) == "user\n\nHi"
    assert llama2.encode("<s>a</s>", special=True) == [1, 263, 2]
    assert not {1, 2} & set(llama2.encode("<s>a</s>"))


def test_mistrals_control_pieces(data: Path) -> None:
    folder = data / "tokenizers" / "mistral"
    tokenizer = tokenizer_at(folder / "mistral_instruct_tokenizer_240323.model.v3")
    assert tokenizer.vocab_size == 32_768
    ids = tokenizer.encode("[INST] Hello [/INST]", bos=True, special=True)
    assert (ids[0], ids[1], ids[-1]) == (1, 3, 4)
    assert tokenizer.decode(ids) == " Hello "
