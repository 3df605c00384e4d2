"""``rllama inspect``: what a checkpoint says of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.gguf_writer import write_model
from support.tiny_models import random_weights, tiny_config

from pyrllama.cli.inspect import abbreviate, stored_bytes
from pyrllama.model_config import Experts
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run


def test_a_llama2c_file(run: Run, stories: Path) -> None:
    report = json.loads(run("inspect", stories, "--json").out)
    assert report["architecture"] == "llama"
    assert report["problem"] is None
    assert report["config"]["n_kv_heads"] == 4
    assert report["parameters"] == 260_032
    # In 5 layers 172 rows of gates and ups fill groups of 16, 172 columns of downs blocks of 32.
    padding = 5 * 4 * (2 * 4 * 64 + 64 * 20)
    in_file = 260_032 * 4
    types = {"F32": {"tensors": 47, "bytes": in_file, "memory": in_file + padding}}
    assert report["types"] == types
    assert report["tokenizer"]["tokens"] == 512
    assert report["tokenizer"]["bos"] == 1
    assert {"name": "blk.4.ffn_down.weight", "shape": [64, 172], "type": "F32",
            "bytes": 64 * 172 * 4} in report["tensors"]  # fmt: skip


def test_memory_is_estimated_for_every_type(run: Run, stories: Path) -> None:
    memory = json.loads(run("inspect", stories, "--json").out)["memory"]
    cached = 2 * 5 * 4 * 16 * 2  # keys and values, layers, heads of 8 padded to 16, float16
    assert memory["kv_cache_per_token"] == cached
    assert memory["kv_cache"] == cached * 512
    vectors = 11 * 64 * 4
    # Groups of 16 rows times blocks of 32 columns; 172 rows are 11 groups, 172 columns 6 blocks.
    groups = 32 * 2 + 5 * (4 * 2 + 2 * 2 + 2 * 2 + 4 * 2 + 11 * 2 + 11 * 2)
    down = 5 * 4 * 6
    assert memory["weights"]["F32"] == (groups + down) * 16 * 32 * 4 + vectors
    # Rows of 172 are no whole blocks: they cannot be quantised, and are held in float16.
    assert memory["weights"]["Q8_0"] == groups * 16 * 34 + down * 16 * 32 * 2 + vectors
    assert memory["weights"]["Q4_0"] == groups * 16 * 18 + down * 16 * 32 * 2 + vectors
    assert memory["total"]["Q4_0"] > memory["weights"]["Q4_0"] + memory["kv_cache"]


def test_experts_count_as_active_where_a_token_meets_them(run: Run, tmp_path: Path) -> None:
    config = tiny_config(experts=Experts(5, 2))
    weights = random_weights(config)
    path = write_model(tmp_path / "m.gguf", config, weights)
    report = json.loads(run("inspect", path, "--json").out)
    assert report["config"]["experts"] == {"count": 5, "used": 2, "normalised": True}
    assert report["parameters"] == sum(values.size for values in weights.values())
    unchosen = 2 * 3 * 3 * 64 * 96  # layers, matrices, experts of each
    assert report["active_parameters"] == report["parameters"] - unchosen
    assert "of them active" in run("inspect", path).out


def test_a_gguf_file_for_people(run: Run, data: Path) -> None:
    done = run("inspect", data / "models" / "llama-2-tiny-random.gguf")
    assert done.status == 0
    for words in ("GGUF 3", "LLaMA v2", "F16", "32000 elements: [", "of KV cache for 4096 tokens"):
        assert words in done.out
    assert "blk.0.attn_q.weight" not in done.out


def test_all_tensors_are_listed_on_demand(run: Run, data: Path) -> None:
    done = run("inspect", data / "models" / "llama-2-tiny-random.gguf", "--tensors")
    assert "blk.0.attn_q.weight" in done.out
    assert "32000 x 8" in done.out


def test_a_vocabulary_alone(run: Run, data: Path) -> None:
    path = data / "vocab" / "ggml-vocab-llama-bpe.gguf"
    report = json.loads(run("inspect", path, "--json").out)
    assert report["config"] is None
    assert report["memory"] is None
    assert report["tensors"] == []
    assert str(path) in report["problem"]
    assert report["tokenizer"]["tokens"] == 128_256
    assert report["metadata"]["tokenizer.ggml.merges"]["length"] == 280_147
    assert run("inspect", path).out.startswith("cannot run: ")


def test_another_architecture(run: Run, data: Path) -> None:
    report = json.loads(run("inspect", data / "vocab" / "ggml-vocab-qwen2.gguf", "--json").out)
    assert report["architecture"] == "qwen2"
    assert "qwen2" in report["problem"]


def test_a_hugging_face_folder(run: Run, data: Path) -> None:
    report = json.loads(run("inspect", data / "models" / "tiny-random-llama-hf", "--json").out)
    assert report["config"]["vocab_size"] == 32_000
    assert report["metadata"]["hidden_size"] == report["config"]["dim"]
    assert report["tokenizer"]["tokens"] == 32_000


def test_a_model_without_a_tokenizer(run: Run, stories: Path, tmp_path: Path) -> None:
    copy = tmp_path / "deep" / "er" / "model.bin"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(stories.read_bytes())
    done = run("inspect", copy, "--json")
    assert done.status == 0
    assert "tokenizer" in json.loads(done.out)["tokenizer"]["problem"]


def test_a_named_tokenizer_must_be_there(run: Run, stories: Path) -> None:
    done = run("inspect", stories, "--tokenizer-path", "/nowhere/tokenizer.model")
    assert done.status == 2
    assert "/nowhere/tokenizer.model" in done.err


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        ("text", "text"),
        (1.5, 1.5),
        (float("inf"), "inf"),
        (np.float32(0.5), 0.5),
        (np.uint64(7), 7),
        (b"\x01", "b'\\x01'"),
        (list(range(8)), list(range(8))),
        (tuple(range(9)), {"length": 9, "first": list(range(8))}),
        (np.arange(100), {"length": 100, "first": list(range(8))}),
        ([[np.int8(1)], {"a": {2: b"x"}}], [[1], {"a": {"2": "b'x'"}}]),
    ],
)
def test_metadata_becomes_plain_and_short(value: Any, expected: Any) -> None:
    shown = abbreviate(value)
    assert shown == expected
    json.dumps(shown, allow_nan=False)


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((4, 64), TensorType.F16, 512),
        ((4, 64), TensorType.Q4_0, 4 * 36),
        ((64,), TensorType.F32, 256),
        ((), TensorType.F16, 2),
    ],
)
def test_bytes_of_a_tensor(shape: tuple[int, ...], kind: TensorType, expected: int) -> None:
    assert stored_bytes(TensorInfo("x", shape, kind)) == expected
