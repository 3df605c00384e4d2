"""Converting to GGUF: the same model, the same tokens, in the type that is asked for."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from support.hf_writer import half_split
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

import pyrllama
from pyrllama.checkpoints import open_checkpoint
from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.checkpoints.llama2c import Llama2cCheckpoint
from pyrllama.convert import export_gguf
from pyrllama.errors import SettingError, TokenizerError
from pyrllama.model_config import (
    DynamicRope,
    Experts,
    LinearRope,
    Llama3Rope,
    RopeScaling,
    YarnRope,
)
from pyrllama.models.rope import ROPE_FACTORS, rope_frequencies
from pyrllama.quants import dequantize, quantize
from pyrllama.tensors import TensorType
from pyrllama.tokenizer import load_tokenizer
from pyrllama.tokenizer.sentencepiece_model import Piece, PieceType, bpe_model

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.model_config import ModelConfig

LETTERS = "▁abcdefghijklmnopqrstuvwxyz"


def pieces() -> list[Piece]:
    """Return a vocabulary of letters, bytes, two merges, and a control token."""
    special = [
        Piece("<unk>", 0.0, PieceType.UNKNOWN),
        Piece("<s>", 0.0, PieceType.CONTROL),
        Piece("</s>", 0.0, PieceType.CONTROL),
        Piece("<|user|>", 0.0, PieceType.CONTROL),
    ]
    numbers = [Piece(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)]
    merged = [Piece("th", -1.0, PieceType.NORMAL), Piece("the", -2.0, PieceType.NORMAL)]
    letters = [Piece(x, -3.0 - i, PieceType.NORMAL) for i, x in enumerate(LETTERS)]
    return special + numbers + merged + letters


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(bpe_model(pieces(), add_space_prefix=True))
    return path


def config_of(**overrides: Any) -> ModelConfig:
    return tiny_config(**({"vocab_size": len(pieces())} | overrides))


def checkpoint_of(
    config: ModelConfig, stored_as: TensorType = TensorType.F32, *, tied: bool = True
) -> MemoryCheckpoint:
    weights = random_weights(config, tied=tied)
    return MemoryCheckpoint(config, weights, stored_as)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("type_", [TensorType.F32, TensorType.F16, TensorType.Q8_0])
def test_config_and_tensors_come_back(
    tmp_path: Path, tokenizer: Path, type_: TensorType, tied: bool
) -> None:
    source = checkpoint_of(config_of(dim=64, ffn_dim=96), tied=tied)
    path = tmp_path / "model.gguf"
    export_gguf(source, tokenizer, path, type_)
    with open_checkpoint(path) as checkpoint:
        constants = {"norm_eps": pytest.approx(source.config.norm_eps)}
        assert (
            dataclasses.asdict(checkpoint.config) == dataclasses.asdict(source.config) | constants
        )
        assert set(checkpoint.tensors) == set(source.tensors)
        for name, info in checkpoint.tensors.items():
            stored = source.read(name)
            wanted = type_ if len(info.shape) == 2 else TensorType.F32
            values = dequantize(TensorType.F32, stored.data, info.shape[-1])
            assert info == dataclasses.replace(stored.info, type=wanted)
            np.testing.assert_array_equal(checkpoint.read(name).data, quantize(wanted, values))


def test_the_same_type_passes_bit_by_bit(tmp_path: Path, tokenizer: Path) -> None:
    source = checkpoint_of(config_of(dim=64, ffn_dim=96), TensorType.Q4_0)
    path = tmp_path / "model.gguf"
    export_gguf(source, tokenizer, path, TensorType.Q4_0)
    with open_checkpoint(path) as checkpoint:
        for name in source.tensors:
            np.testing.assert_array_equal(checkpoint.read(name).data, source.read(name).data)


def test_rows_of_odd_length_become_f16(tmp_path: Path, tokenizer: Path) -> None:
    source = checkpoint_of(config_of(dim=64, ffn_dim=48))
    path = tmp_path / "model.gguf"
    export_gguf(source, tokenizer, path, TensorType.Q8_0)
    with open_checkpoint(path) as checkpoint:
        types = {info.type for name, info in checkpoint.tensors.items() if "ffn_down" in name}
        assert types == {TensorType.F16}
        assert checkpoint.tensors["blk.0.ffn_gate.weight"].type == TensorType.Q8_0


def test_ggml_reads_the_keys_with_their_types(tmp_path: Path, tokenizer: Path) -> None:
    source = checkpoint_of(config_of(dim=64, ffn_dim=96))
    path = tmp_path / "model.gguf"
    template = {"tokenizer.chat_template": "{{ messages }}", "general.name": "tiny"}
    export_gguf(source, tokenizer, path, TensorType.Q8_0, metadata=template)
    fields = gguf.GGUFReader(path).fields
    values = {key: field.contents() for key, field in fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.name"] == "tiny"
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert values["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert values["llama.embedding_length"] == 64
    assert values["tokenizer.chat_template"] == "{{ messages }}"
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.tokens"] == [piece.text for piece in pieces()]
    assert values["tokenizer.ggml.scores"] == [piece.score for piece in pieces()]
    assert values["tokenizer.ggml.token_type"] == [piece.type for piece in pieces()]
    ids = [values[f"tokenizer.ggml.{key}_token_id"] for key in ("unknown", "bos", "eos")]
    assert ids == [0, 1, 2]
    assert fields["llama.context_length"].types == [gguf.GGUFValueType.UINT32]
    assert fields["llama.rope.freq_base"].types == [gguf.GGUFValueType.FLOAT32]
    assert fields["tokenizer.ggml.token_type"].types[1] == gguf.GGUFValueType.INT32


@pytest.mark.parametrize("text", ["the cat", " then\nthere ", "Grüße 世界", "<|user|>the", ""])
def test_the_tokenizer_gives_the_same_ids(tmp_path: Path, tokenizer: Path, text: str) -> None:
    path = tmp_path / "model.gguf"
    export_gguf(checkpoint_of(config_of()), tokenizer, path, TensorType.F32)
    before, after = load_tokenizer(tokenizer), load_tokenizer(path)
    for special in (False, True):
        ids = before.encode(text, bos=True, special=special)
        assert after.encode(text, bos=True, special=special) == ids
    assert after.decode(ids) == before.decode(ids)
    assert (after.bos_id, after.eos_id, after.stop_ids) == (1, 2, frozenset({2}))


def test_a_padded_embedding_gets_unused_tokens(tmp_path: Path, tokenizer: Path) -> None:
    count = len(pieces())
    path = tmp_path / "model.gguf"
    export_gguf(checkpoint_of(config_of(vocab_size=320)), tokenizer, path, TensorType.F32)
    file = GgufFile(path)
    assert list(file.metadata["tokenizer.ggml.tokens"])[count:] == [
        f"[PAD{i}]" for i in range(count, 320)
    ]
    assert set(file.metadata["tokenizer.ggml.token_type"][count:].tolist()) == {PieceType.UNUSED}
    file.close()


def test_the_vocabulary_of_a_gguf_file_is_taken_over(tmp_path: Path, tokenizer: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    source = checkpoint_of(config_of())
    more = {"tokenizer.chat_template": "x", "general.name": "not taken over"}
    export_gguf(source, tokenizer, first, TensorType.F32, metadata=more)
    export_gguf(source, first, second, TensorType.F16)
    one, two = GgufFile(first), GgufFile(second)
    for key in one.metadata:
        if key.startswith("tokenizer."):
            np.testing.assert_array_equal(list(one.metadata[key]) if "ggml.t" in key else
                                          one.metadata[key],
                                          list(two.metadata[key]) if "ggml.t" in key else
                                          two.metadata[key])  # fmt: skip
    assert "general.name" not in two.metadata
    one.close()
    two.close()


def test_stretched_rope_becomes_stored_factors(tmp_path: Path, tokenizer: Path) -> None:
    config = config_of(rope_scaling=Llama3Rope(original_context=64))
    path = tmp_path / "model.gguf"
    export_gguf(checkpoint_of(config), tokenizer, path, TensorType.F32)
    with open_checkpoint(path) as checkpoint:
        factors = checkpoint.read(ROPE_FACTORS).data.view(np.float32)[0]
        np.testing.assert_allclose(
            rope_frequencies(checkpoint.config, factors), rope_frequencies(config), rtol=1e-6
        )


def test_progress_counts_tensors(tmp_path: Path, tokenizer: Path) -> None:
    source = checkpoint_of(config_of())
    seen: list[tuple[int, int]] = []
    export_gguf(
        source, tokenizer, tmp_path / "m.gguf", TensorType.F32, progress=lambda *n: seen.append(n)
    )
    count = len(source.tensors)
    assert seen == [(number, count) for number in range(1, count + 1)]


def test_a_type_that_cannot_be_written(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(SettingError, match="the type is 'Q2_K', but it must be one of F32"):
        export_gguf(checkpoint_of(config_of()), tokenizer, tmp_path / "m.gguf", TensorType.Q2_K)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no tokenizer that can be written"),
        (b'{"model": {}}', "not a tokenizer"),
        (b"\x0a\x05bro", "cannot be used|cut or broken"),
    ],
)
def test_tokenizers_that_cannot_be_written(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=f"tokenizer: .*({problem})"):
        export_gguf(checkpoint_of(config_of()), path, tmp_path / "m.gguf", TensorType.F32)
    assert not (tmp_path / "m.gguf").exists()


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be read: No such file"):
        export_gguf(checkpoint_of(config_of()), tmp_path / "no", tmp_path / "m", TensorType.F32)


def test_a_tokenizer_larger_than_the_model(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(TokenizerError, match=f"has {len(pieces())} tokens, the model 256"):
        export_gguf(
            checkpoint_of(config_of(vocab_size=256)), tokenizer, tmp_path / "m", TensorType.F32
        )


def test_a_trained_model_tells_the_same_story(tmp_path: Path, data: Path) -> None:
    models = data / "models"
    path = tmp_path / "stories.gguf"
    with Llama2cCheckpoint(models / "stories260K.bin") as checkpoint:
        export_gguf(checkpoint, models / "tok512.model", path, TensorType.F32)
    told = []
    for model, tokenizer in ((models / "stories260K.bin", models / "tok512.model"), (path, None)):
        with pyrllama.load(model, tokenizer_path=tokenizer, backend="reference") as llama:
            told.append(llama.generate("Once upon", temperature=0, max_tokens=20).text)
    assert told[0] == told[1]
    assert told[0]


FAMILY = {
    "window": config_of(sliding_window=16),
    "experts": config_of(experts=Experts(5, 2)),
    "linear": config_of(rope_scaling=LinearRope(4.0)),
    "yarn": config_of(rope_scaling=YarnRope(4.0, 64, 1.5, 16.0, 2.0)),
    "qwen2": config_of(architecture="qwen2", attention_bias=True),
    "qwen3": config_of(architecture="qwen3", qk_norm=True, head_dim=24),
    "qwen3moe": config_of(
        architecture="qwen3moe", qk_norm=True, experts=Experts(3, 2, normalised=False)
    ),
}


@pytest.mark.parametrize("type_", [TensorType.F32, TensorType.Q8_0])
@pytest.mark.parametrize("name", FAMILY)
def test_every_architecture_comes_back(
    tmp_path: Path, tokenizer: Path, name: str, type_: TensorType
) -> None:
    config = dataclasses.replace(FAMILY[name], norm_eps=2.0**-17)
    source, path = checkpoint_of(config), tmp_path / "model.gguf"
    export_gguf(source, tokenizer, path, type_)
    with open_checkpoint(path) as checkpoint:
        scaling = checkpoint.config.rope_scaling
        assert dataclasses.replace(checkpoint.config, rope_scaling=None) == dataclasses.replace(
            config, rope_scaling=None
        )
        if config.rope_scaling is not None:
            assert scaling is not None
            assert dataclasses.asdict(scaling) == pytest.approx(
                dataclasses.asdict(config.rope_scaling)
            )
        assert set(checkpoint.tensors) == set(source.tensors)
        for tensor, info in checkpoint.tensors.items():
            assert info.shape == source.tensors[tensor].shape
            stored = checkpoint.read(tensor).data
            values = dequantize(TensorType.F32, source.read(tensor).data, info.shape[-1])
            np.testing.assert_array_equal(stored, quantize(info.type, values), tensor)


def test_rows_are_in_the_order_of_the_architectures_files(tmp_path: Path, tokenizer: Path) -> None:
    source, path = checkpoint_of(FAMILY["qwen2"]), tmp_path / "model.gguf"
    export_gguf(source, tokenizer, path, TensorType.F32)
    with closing(GgufFile(path)) as file:
        for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.0.attn_k.bias"):
            values = source.read(name).data.view(np.float32).reshape(source.tensors[name].shape)
            stored = file.data(name).view(np.float32).reshape(values.shape)
            np.testing.assert_array_equal(stored, half_split(values, len(values) // 16))


def test_routers_stay_in_f32(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "model.gguf"
    export_gguf(checkpoint_of(FAMILY["experts"]), tokenizer, path, TensorType.Q4_0)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["blk.1.ffn_gate_inp.weight"].type is TensorType.F32
        assert checkpoint.tensors["blk.1.ffn_gate_exps.weight"].type is TensorType.Q4_0


@pytest.mark.parametrize("scaling", [DynamicRope(2.0, 64), YarnRope(2.0, 64, 1.0, truncate=False)])
def test_scaling_that_gguf_cannot_express(
    tmp_path: Path, tokenizer: Path, scaling: RopeScaling
) -> None:
    source = checkpoint_of(config_of(rope_scaling=scaling))
    with pytest.raises(SettingError, match=rf"RoPE scaling is '{scaling.kind}', but it must be"):
        export_gguf(source, tokenizer, tmp_path / "m.gguf", TensorType.F32)
