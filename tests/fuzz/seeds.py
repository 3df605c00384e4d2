"""Whole files of every format that is read, as small as can be, and how each is damaged."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fuzz.damage import Damage, blind, replace_part, some_word, start_of
from fuzz.layouts import (
    at_fields,
    fields_of_gguf,
    fields_of_protobuf,
    fields_of_words,
    fields_of_zip,
    in_json,
    in_pickle,
    in_safetensors,
)
from fuzz.vocabularies import (
    VOCAB,
    byte_level,
    byte_pair_keys,
    llama2c_tokenizer,
    metaspace,
    sentencepiece_bpe,
    sentencepiece_keys,
    sentencepiece_unigram,
    tiktoken_words,
)
from support.gguf_writer import Typed, model_metadata, write_gguf
from support.hf_writer import write_hf_folder
from support.llama2c_writer import write_llama2c
from support.tiny_models import random_weights, tiny_config
from support.torch_writer import write_meta_folder, write_zip

from pyrllama.logits_file import saved_logits
from pyrllama.model_config import Experts, Llama3Rope
from pyrllama.tensors import TensorType
from pyrllama.text_chunks import TextChunks

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping


class Kind(enum.Enum):
    """What a file is, and with it what is done to it."""

    CHECKPOINT = "checkpoint"
    TOKENIZER = "tokenizer"
    IMPORTANCE = "importance"
    LOGITS = "logits"


@dataclass(frozen=True)
class Seed:
    """Whole files by their names, which of them is opened, and the damages for each."""

    name: str
    kind: Kind
    files: Mapping[str, bytes]
    opened: str
    damages: Mapping[str, tuple[Damage, ...]]
    weight: float = 1.0
    """How often it is taken, beside the others."""

    def damaged(self, rng: random.Random) -> dict[str, bytes]:
        """Return the files with one of them damaged, mostly once."""
        files = dict(self.files)
        name = rng.choice(list(self.damages))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            files[name] = rng.choice(self.damages[name])(files[name], rng)
        return files


@cache
def all_seeds() -> tuple[Seed, ...]:
    """Return the seeds of all formats."""
    return (
        *_gguf_seeds(), *_meta_seeds(), *_hugging_face_seeds(), *_llama2c_seeds(),
        *_tokenizer_seeds(), _importance_seed(), _logits_seed(),
    )  # fmt: skip


def _written(write: Callable[[Path], object]) -> dict[str, bytes]:
    """Return what a function writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


MODEL = tiny_config(vocab_size=VOCAB, dim=32, n_layers=1, ffn_dim=32, head_dim=8)
MIXTURE = dataclasses.replace(MODEL, experts=Experts(3, 2))
"""The sizes of the models, but of the one with blocks of 256 numbers."""


# GGUF.


def _gguf_seeds() -> list[Seed]:
    large = tiny_config(
        vocab_size=VOCAB, dim=256, n_layers=1, n_heads=2, head_dim=128, n_kv_heads=1, ffn_dim=256
    )
    experts = tiny_config(
        architecture="qwen3moe", vocab_size=VOCAB, dim=32, n_layers=1, ffn_dim=32, head_dim=8,
        qk_norm=True, experts=Experts(3, 2), sliding_window=40,
    )  # fmt: skip
    return [
        _gguf_seed("experts, YaRN", experts, (TensorType.F16,), sentencepiece_keys() | _YARN),
        _gguf_seed("f16, sentencepiece", MODEL, (TensorType.F16,), sentencepiece_keys()),
        _gguf_seed("legacy types, byte pairs", MODEL, _LEGACY, byte_pair_keys()),
        _gguf_seed("k-quants, sentencepiece", large, _SUPERBLOCKS, sentencepiece_keys()),
    ]


_YARN = {
    "qwen3moe.rope.scaling.type": "yarn",
    "qwen3moe.rope.scaling.factor": 2.0,
    "qwen3moe.rope.scaling.original_context_length": 64,
    "qwen3moe.rope.scaling.attn_factor": 1.5,
    "qwen3moe.rope.scaling.yarn_log_multiplier": 0.5,
    "qwen3moe.rope.scaling.yarn_beta_fast": 16.0,
    "qwen3moe.rope.scaling.yarn_beta_slow": 2.0,
}
_LEGACY = (
    *(TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0),
    *(TensorType.IQ4_NL, TensorType.MXFP4, TensorType.BF16),
)
_SUPERBLOCKS = (
    *(TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K),
    *(TensorType.IQ4_XS, TensorType.TQ1_0, TensorType.TQ2_0),
)


def _gguf_seed(name: str, config: Any, types: tuple[TensorType, ...], keys: Any) -> Seed:
    metadata = {**model_metadata(config), **keys, "general.tags": ["a", "b"]}
    weights = random_weights(config)
    tensors = {
        name: (types[i % len(types)] if values.ndim > 1 else TensorType.F32, values)
        for i, (name, values) in enumerate(weights.items())
    }
    content = _gguf_bytes(metadata, tensors)
    damages = (
        blind, start_of, at_fields(fields_of_gguf), partial(_in_gguf, metadata, tensors, content),
    )  # fmt: skip
    return Seed(name, Kind.CHECKPOINT, {"m.gguf": content}, "m.gguf", {"m.gguf": damages})


def _gguf_bytes(metadata: Any, tensors: Any) -> bytes:
    return _written(lambda folder: write_gguf(folder / "m", metadata, tensors))["m"]


_GGUF_LEAVES = (
    *(0, 1, 2, 3, 7, 32, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, True, False, 0.5, 1e-30),
    *(float("nan"), float("inf"), "", " ", "a", "\0", "a\nb", "é" * 300, "a" * 70_000, "llama"),
    *("gpt2", "default", "<0xZZ>", "<0x41>", b"\xff", [1], [0.5], ["a"], ["a" * 70_000, "b"]),
    *(Typed(10, 1 << 63), Typed(11, -(1 << 63)), Typed(12, 1e300), Typed(5, -1), Typed(0, 9)),
    *([[1], [2]], [["a"], ["b"]], Typed(9, [], 4), Typed(9, [], 8), Typed(9, [], 9), [True]),
)


def _in_gguf(
    metadata: Any, tensors: Any, whole: bytes, content: bytes, rng: random.Random
) -> bytes:
    """Write the file with another value somewhere in its metadata."""
    if content != whole:
        return blind(content, rng)
    if rng.randrange(2):  # most of the leaves are the vocabulary's, so the other keys come first
        chosen = rng.choice(list(metadata))
        changed = {**metadata, chosen: rng.choice(_GGUF_LEAVES)}
    else:
        changed = replace_part(metadata, rng, _GGUF_LEAVES)
    try:
        return _gguf_bytes(changed, tensors)
    except Exception:
        return blind(content, rng)


# Meta's and Hugging Face's folders.

_TOKENIZER = {"tokenizer.model": sentencepiece_bpe()}


def _meta_seeds() -> list[Seed]:
    weights = random_weights(MODEL)
    seeds = []
    for shards, dtype in ((1, np.float32), (2, np.float16)):
        files = _written(
            partial(write_meta_folder, config=MODEL, weights=weights, shards=shards, dtype=dtype)
        )
        damages = {name: _of_folder(name) for name in files}
        seeds.append(
            Seed(f"Meta, {shards} shards", Kind.CHECKPOINT, files | _TOKENIZER, "", damages)
        )
    return seeds


def _hugging_face_seeds() -> list[Seed]:
    scaled = dataclasses.replace(MODEL, rope_scaling=Llama3Rope(original_context=64))
    weights = random_weights(MODEL)
    seeds = []
    for form in ("safetensors", "sharded safetensors", "bin", "sharded bin"):
        files = _written(partial(write_hf_folder, config=scaled, weights=weights, form=form))
        beside = {"generation_config.json": b'{"eos_token_id": [2]}'}
        damages = {name: _of_folder(name) for name in files | beside}
        whole = {**files, **beside, **_TOKENIZER}
        seeds.append(Seed(f"Hugging Face, {form}", Kind.CHECKPOINT, whole, "", damages))
    return seeds


def _of_folder(name: str) -> tuple[Damage, ...]:
    """Return the damages for a file by its name."""
    if name.endswith(".json"):
        return (blind, in_json, in_json, in_json)
    if name.endswith(".safetensors"):
        return (blind, start_of, at_fields(fields_of_words(2)), in_safetensors, in_safetensors)
    return (blind, start_of, at_fields(fields_of_zip), _in_torch_file, _in_torch_file)


def _in_torch_file(content: bytes, rng: random.Random) -> bytes:
    """Damage the pickle in a zip, which is whole otherwise."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return blind(content, rng)
    pickles = [name for name in records if name.endswith("data.pkl")]
    for name in pickles:
        records[name] = rng.choice((in_pickle, blind))(records[name], rng)
    return _written(lambda folder: write_zip(folder / "z", records, ""))["z"]


# llama2.c, tokenizers, importance, logits.


def _llama2c_seeds() -> list[Seed]:
    tokenizer = {"tokenizer.bin": llama2c_tokenizer()}
    damages = (blind, start_of, at_fields(fields_of_words(7)), at_fields(fields_of_words(10)))
    seeds = []
    for version in (0, 1, 2):
        files = _written(partial(_write_llama2c, version=version))
        name = f"llama2.c {version}"
        seeds.append(Seed(name, Kind.CHECKPOINT, files | tokenizer, "m.bin", {"m.bin": damages}))
    return seeds


def _write_llama2c(folder: Path, version: int) -> None:
    write_llama2c(folder / "m.bin", MODEL, random_weights(MODEL), version)


def _tokenizer_seeds() -> list[Seed]:
    in_model = (blind, start_of, at_fields(fields_of_protobuf), some_word, _end_of)
    beside = {
        "tokenizer_config.json": b'{"bos_token": "<s>", "eos_token": {"content": "</s>"}}',
        "special_tokens_map.json": b'{"bos_token": "<s>"}',
        "config.json": b'{"eos_token_id": [2], "bos_token_id": 1}',
    }
    seeds = [
        _tokenizer_seed("SentencePiece BPE", _TOKENIZER, in_model),
        _tokenizer_seed(
            "SentencePiece Unigram", {"tokenizer.model": sentencepiece_unigram()}, in_model
        ),
        _tokenizer_seed("llama2.c's", {"tokenizer.bin": llama2c_tokenizer()}, (blind, start_of)),
    ]
    for name, tree in (("bytes", byte_level()), ("space markers", metaspace())):
        files = {"tokenizer.json": json.dumps(tree).encode(), **beside}
        seeds.append(_tokenizer_seed(f"tokenizer.json, {name}", files, (blind, in_json, in_json)))
    dear = _tokenizer_seed("tiktoken", {"t.tiktoken": tiktoken_words()}, (blind, start_of))
    return [*seeds, dataclasses.replace(dear, weight=0.05)]


def _tokenizer_seed(name: str, files: Mapping[str, bytes], damages: tuple[Damage, ...]) -> Seed:
    each = dict.fromkeys(files, damages)
    return Seed(name, Kind.TOKENIZER, files, next(iter(files)), each)


def _end_of(content: bytes, rng: random.Random) -> bytes:
    """Damage the last bytes, where the settings of a SentencePiece model stand."""
    return content[:-64] + blind(content[-64:], rng)


def _importance_seed() -> Seed:
    sums = {
        name: np.linspace(0.0, 9.0, values[..., 0, :].size).reshape(values[..., 0, :].shape)
        for name, values in random_weights(MIXTURE).items()
        if values.ndim > 1
    }
    counts = {1: np.array([64.0]), 2: np.array([[48.0], [80.0], [0.0]])}
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": ["d"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 32,
    }
    tensors = {
        name + ending: (TensorType.F32, values.astype(np.float32))
        for name, columns in sums.items()
        for ending, values in ((".in_sum2", columns), (".counts", counts[columns.ndim]))
    }
    content = _gguf_bytes(metadata, tensors)
    semantic = partial(_in_gguf, metadata, tensors, content)
    damages = (blind, start_of, at_fields(fields_of_gguf), semantic, _in_numbers)
    return Seed(
        "importance",
        Kind.IMPORTANCE,
        {"i.gguf": content, **_TOKENIZER},
        "i.gguf",
        {"i.gguf": damages},
    )


def _logits_seed() -> Seed:
    text = TextChunks(np.arange(36) * 7 % VOCAB, context=16, count=2, bos=None)
    logits = np.random.default_rng(0).standard_normal((2 * text.scored, VOCAB)).astype(np.float32)

    def write(folder: Path) -> None:
        with saved_logits(folder / "l.logits", text, VOCAB) as tap:
            tap(logits)

    damages = (blind, start_of, at_fields(fields_of_words(6)), at_fields(fields_of_words(9, 20)))
    files = _written(write)
    return Seed("logits", Kind.LOGITS, files, "l.logits", {"l.logits": (*damages, _in_numbers)})


def _in_numbers(content: bytes, rng: random.Random) -> bytes:
    """Put floating-point numbers from the edges into words of the second half."""
    damaged = np.frombuffer(content[: len(content) // 4 * 4], "<f4").copy()
    edges = (0.0, -0.0, 1e-45, 1e-38, 1.0, -1.0, 3e38, -3e38, np.inf, -np.inf, np.nan)
    for _ in range(rng.randrange(1, 9)):
        place = rng.randrange(len(damaged) // 2, len(damaged))
        damaged[place : place + rng.choice((1, 1, 64))] = rng.choice(edges)
    return damaged.tobytes() + content[len(content) // 4 * 4 :]
