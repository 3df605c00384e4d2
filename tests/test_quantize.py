"""Quantising whole checkpoints: what is written, what is reported, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

import pyrllama
from pyrllama.checkpoints import open_checkpoint
from pyrllama.checkpoints.gguf_file import GgufFile
from pyrllama.convert import export_gguf
from pyrllama.errors import CorruptFileError, SettingError, TensorError
from pyrllama.importance import Importance
from pyrllama.mixtures import Mixture
from pyrllama.model_config import Experts, Llama3Rope
from pyrllama.models.rope import ROPE_FACTORS
from pyrllama.quantize import quantize_checkpoint
from pyrllama.quants import dequantize, quantize_fitted
from pyrllama.tensors import TensorType
from pyrllama.tokenizer.sentencepiece_model import Piece, PieceType, bpe_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig

VOCAB = 300


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Return a tokenizer of bytes and a few letters."""
    pieces = [
        Piece("<unk>", 0.0, PieceType.UNKNOWN),
        Piece("<s>", 0.0, PieceType.CONTROL),
        Piece("</s>", 0.0, PieceType.CONTROL),
        *(Piece(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)),
        *(Piece(letter, -1.0 - i, PieceType.NORMAL) for i, letter in enumerate("▁abcdef")),
    ]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(bpe_model(pieces, add_space_prefix=True))
    return path


def config_of(**overrides: Any) -> ModelConfig:
    sizes = {"vocab_size": VOCAB, "dim": 256, "ffn_dim": 512, "head_dim": 64}
    return tiny_config(**(sizes | overrides))


def checkpoint_of(**overrides: Any) -> MemoryCheckpoint:
    config = config_of(**overrides)
    return MemoryCheckpoint(config, random_weights(config))


def numbers(path: Path) -> dict[str, NDArray[np.float32]]:
    with open_checkpoint(path) as checkpoint:
        return {
            name: dequantize(info.type, checkpoint.read(name).data, info.shape[-1])
            for name, info in checkpoint.tensors.items()
        }


def test_tensors_are_fitted_and_told(tmp_path: Path, tokenizer: Path) -> None:
    source, path = checkpoint_of(), tmp_path / "m.gguf"
    done = quantize_checkpoint(source, tokenizer, path, Mixture.Q4_K_M)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == [tensor.name for tensor in done.tensors]
        for tensor in done.tensors:
            info = checkpoint.tensors[tensor.name]
            assert (info.type, info.shape) == (tensor.type, tensor.shape)
            stored, cols = checkpoint.read(tensor.name).data, info.shape[-1]
            assert stored.size == tensor.n_bytes
            x = dequantize(TensorType.F32, source.read(tensor.name).data, cols)
            np.testing.assert_array_equal(stored, quantize_fitted(info.type, x))
            rest = dequantize(info.type, stored, cols) - x
            expected = np.sqrt((rest**2).sum() / (x**2).sum())
            assert tensor.relative_error == pytest.approx(expected, rel=1e-4)
    types = {tensor.name: tensor.type for tensor in done.tensors}
    assert types["output.weight"] is TensorType.Q6_K
    assert types["blk.0.attn_q.weight"] is TensorType.Q4_K
    assert types["output_norm.weight"] is TensorType.F32
    assert done.n_bytes == sum(tensor.n_bytes for tensor in done.tensors)
    assert 4.5 < done.bits_per_weight < 6.6
    assert done.requantised == ()


def test_ggml_reads_the_file(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "tiny-model.gguf"
    quantize_checkpoint(checkpoint_of(), tokenizer, path, Mixture.Q5_K_S, metadata={"x.y": "z"})
    reader = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q5_K_S
    assert values["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert values["general.type"] == "model"
    assert values["general.name"] == "memory"
    assert values["llama.block_count"] == 2
    assert values["x.y"] == "z"
    assert len(values["tokenizer.ggml.tokens"]) == VOCAB
    ours = numbers(path)
    for tensor in reader.tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(np.atleast_2d(theirs), ours[tensor.name])


@pytest.mark.parametrize("mixture", Mixture)
def test_every_type_is_written(tmp_path: Path, tokenizer: Path, mixture: Mixture) -> None:
    source, path = checkpoint_of(n_layers=1), tmp_path / "m.gguf"
    done = quantize_checkpoint(source, tokenizer, path, mixture, pure=True)
    assert {t.type for t in done.tensors if len(t.shape) == 2} == {mixture.type}
    file = GgufFile(path)
    assert file.metadata["general.file_type"] == mixture.code
    file.close()
    limits = {TensorType.Q2_K: 0.3, TensorType.TQ1_0: 0.5, TensorType.TQ2_0: 0.5}
    assert all(t.relative_error < limits.get(t.type, 0.16) for t in done.tensors)


def test_codes_of_files_are_those_of_llama_cpp() -> None:
    theirs = {kind.name: kind.value for kind in gguf.LlamaFileType}
    for mixture in Mixture:
        name = "MXFP4_MOE" if mixture is Mixture.MXFP4 else mixture.name
        known = theirs.get(f"MOSTLY_{name}", theirs.get(f"ALL_{name}"))
        assert known == mixture.code, mixture


def test_a_gguf_files_own_keys_are_kept(tmp_path: Path, tokenizer: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    keys = {
        "general.name": "Lily",
        "general.license": "mit",
        "general.tags": ["stories", "small"],
        "tokenizer.chat_template": "{{ messages }}",
        "split.count": 1,
    }
    export_gguf(checkpoint_of(), tokenizer, first, TensorType.F16, metadata=keys)
    with open_checkpoint(first) as checkpoint:
        quantize_checkpoint(checkpoint, first, second, Mixture.Q6_K)
    one, two = GgufFile(first), GgufFile(second)
    assert set(two.metadata) == set(one.metadata) - {"split.count"}
    changed = {"general.file_type", "split.count"}
    for key in set(one.metadata) - changed:
        a, b = one.metadata[key], two.metadata[key]
        assert (
            np.array_equal(a, b) if isinstance(a, np.ndarray) else (a == b or list(a) == list(b))
        ), key
    assert two.metadata["general.file_type"] == Mixture.Q6_K.code
    one.close()
    two.close()


def test_threads_do_not_show(tmp_path: Path, tokenizer: Path) -> None:
    source = checkpoint_of(vocab_size=9000)
    files = [tmp_path / f"{threads}.gguf" for threads in (1, 2, 5)]
    for threads, path in zip((1, 2, 5), files, strict=True):
        quantize_checkpoint(source, tokenizer, path, Mixture.Q4_0, threads=threads)
    assert len({path.read_bytes() for path in files}) == 1


def test_progress_counts_numbers(tmp_path: Path, tokenizer: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    source = checkpoint_of()
    quantize_checkpoint(
        source, tokenizer, tmp_path / "m", Mixture.Q8_0, progress=lambda *now: seen.append(now)
    )
    done = [now[1] for now in seen]
    total = sum(int(np.prod(info.shape)) for info in source.tensors.values())
    assert done == sorted(done)
    assert {now[2] for now in seen} == {total}
    assert done[-1] == total
    assert {now[0] for now in seen} == set(source.tensors)


def importance_of(source: MemoryCheckpoint, path: Path) -> Importance:
    rng = np.random.default_rng(1)
    columns = {
        name: rng.gamma(0.5, 1.0, info.shape[-1]).astype(np.float32) + np.float32(1e-3)
        for name, info in source.tensors.items()
        if name.startswith("blk.") and len(info.shape) == 2
    }
    return Importance(path, columns, ("text",), 3)


def with_and_without(
    importance: Importance, source: MemoryCheckpoint, tokenizer: Path, folder: Path
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Quantise to ``plain.gguf`` and by importance to ``weighed.gguf``; return both's numbers."""
    plain, weighed = folder / "plain.gguf", folder / "weighed.gguf"
    quantize_checkpoint(source, tokenizer, plain, Mixture.Q3_K_S)
    done = quantize_checkpoint(source, tokenizer, weighed, Mixture.Q3_K_S, importance=importance)
    assert {t.name for t in done.tensors if t.importance} == set(importance.columns)
    return numbers(plain), numbers(weighed)


def test_importance_lowers_the_errors_that_matter(tmp_path: Path, tokenizer: Path) -> None:
    source = checkpoint_of()
    importance = importance_of(source, tmp_path / "imatrix.gguf")
    one, two = with_and_without(importance, source, tokenizer, tmp_path)
    for name, columns in importance.columns.items():
        x = dequantize(TensorType.F32, source.read(name).data, columns.size)
        assert (columns * (two[name] - x) ** 2).sum() < (columns * (one[name] - x) ** 2).sum()
    file = GgufFile(tmp_path / "weighed.gguf")
    assert file.metadata["quantize.imatrix.file"] == "imatrix.gguf"
    assert file.metadata["quantize.imatrix.entries_count"] == len(importance.columns)
    file.close()


def mixture_of_experts() -> MemoryCheckpoint:
    return checkpoint_of(architecture="qwen3moe", qk_norm=True, experts=Experts(4, 2), ffn_dim=256)


def importance_of_experts(source: MemoryCheckpoint, path: Path) -> Importance:
    """Return another importance for each expert; that of the second one is unknown."""
    rng = np.random.default_rng(2)
    columns = {}
    for name, info in source.tensors.items():
        if "_exps" in name:
            shape = (info.shape[0], info.shape[-1])
            columns[name] = rng.gamma(0.5, 1.0, shape).astype(np.float32) + np.float32(1e-3)
            columns[name][1] = 1.0
    return Importance(path, columns, ("text",), 3)


def test_each_expert_is_weighed_by_its_own_importance(tmp_path: Path, tokenizer: Path) -> None:
    source = mixture_of_experts()
    importance = importance_of_experts(source, tmp_path / "imatrix.gguf")
    one, two = with_and_without(importance, source, tokenizer, tmp_path)
    for name, columns in importance.columns.items():
        shape = source.tensors[name].shape
        x = dequantize(TensorType.F32, source.read(name).data, shape[-1]).reshape(shape)
        errors = np.square(np.stack([one[name], two[name]]).reshape(2, *shape) - x)
        before, after = (errors * columns[:, None]).sum(axis=(2, 3))  # (experts,)
        assert (after[[0, 2, 3]] < 0.97 * before[[0, 2, 3]]).all()
        assert after[1] == before[1]
        for expert in range(4):
            fitted = quantize_fitted(TensorType.Q3_K, x[expert], columns[expert])
            stored = dequantize(TensorType.Q3_K, fitted, shape[-1])
            np.testing.assert_array_equal(two[name].reshape(shape)[expert], stored)


def test_neither_threads_nor_slices_show_in_experts(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = mixture_of_experts()
    importance = importance_of_experts(source, tmp_path / "imatrix.gguf")
    written = set()
    for threads, numbers_at_once in ((1, 1 << 20), (2, 1 << 20), (5, 100 * 256), (3, 7 * 256)):
        monkeypatch.setattr("pyrllama.quantize._TASK_NUMBERS", numbers_at_once)
        path = tmp_path / f"{threads}.gguf"
        quantize_checkpoint(
            source, tokenizer, path, Mixture.Q4_K_S, importance=importance, threads=threads
        )
        written.add(path.read_bytes())
    assert len(written) == 1


def test_importance_of_other_experts(tmp_path: Path, tokenizer: Path) -> None:
    wrong = {"blk.0.ffn_up_exps.weight": np.ones((8, 256), np.float32)}
    importance = Importance(tmp_path / "i", wrong, (), 0)
    with pytest.raises(TensorError, match="is for 8 experts of 256 columns, but the tensor has 4"):
        quantize_checkpoint(
            mixture_of_experts(), tokenizer, tmp_path / "m", Mixture.Q4_0, importance=importance
        )
    assert not (tmp_path / "m").exists()


def test_importance_of_another_model(tmp_path: Path, tokenizer: Path) -> None:
    wrong = {"blk.0.attn_q.weight": np.ones(64, np.float32)}
    importance = Importance(tmp_path / "i", wrong, (), 0)
    with pytest.raises(TensorError, match="is for 64 columns, but the tensor has 256"):
        quantize_checkpoint(
            checkpoint_of(), tokenizer, tmp_path / "m", Mixture.Q4_0, importance=importance
        )
    assert not (tmp_path / "m").exists()


def test_stretched_rope_is_stored(tmp_path: Path, tokenizer: Path) -> None:
    source, path = checkpoint_of(rope_scaling=Llama3Rope(original_context=64)), tmp_path / "m"
    quantize_checkpoint(source, tokenizer, path, Mixture.Q8_0)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors[ROPE_FACTORS].shape == (32,)


def test_quantising_again_is_told(tmp_path: Path, tokenizer: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    quantize_checkpoint(checkpoint_of(), tokenizer, first, Mixture.Q8_0)
    with open_checkpoint(first) as checkpoint:
        done = quantize_checkpoint(checkpoint, first, second, Mixture.Q4_K_S)
    assert done.requantised == (TensorType.Q8_0,)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mixture", [Mixture.Q4_K_M, Mixture.F16])
def test_numbers_that_are_not_finite(
    tmp_path: Path, tokenizer: Path, wrong: float, mixture: Mixture
) -> None:
    config = config_of()
    weights = random_weights(config)
    weights["blk.1.ffn_up.weight"][3, 7] = wrong
    with pytest.raises(CorruptFileError, match=r"blk.1.ffn_up.weight has numbers that are not"):
        quantize_checkpoint(
            MemoryCheckpoint(config, weights), tokenizer, tmp_path / "m.gguf", mixture
        )
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_numbers_too_large_for_f16(tmp_path: Path, tokenizer: Path) -> None:
    config = config_of()
    weights = random_weights(config)
    weights["output.weight"][0, 0] = 1e6
    source = MemoryCheckpoint(config, weights)
    with pytest.raises(SettingError, match=r"must be BF16 or F32: output.weight has numbers"):
        quantize_checkpoint(source, tokenizer, tmp_path / "m.gguf", Mixture.F16)
    quantize_checkpoint(source, tokenizer, tmp_path / "m.gguf", Mixture.BF16)


def test_the_source_is_not_overwritten(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "m.gguf"
    quantize_checkpoint(checkpoint_of(), tokenizer, path, Mixture.F16)
    before = path.read_bytes()
    with open_checkpoint(path) as checkpoint, pytest.raises(SettingError, match="another one"):
        quantize_checkpoint(checkpoint, path, path, Mixture.Q8_0)
    assert path.read_bytes() == before


def test_the_kernels_run_what_was_made(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "m.gguf"
    quantize_checkpoint(checkpoint_of(), tokenizer, path, Mixture.TQ2_0, pure=True)
    with pyrllama.load(path) as llama:
        logits = llama.logits([1, 2, 3])
    with pyrllama.load(path, backend="reference") as llama:
        expected = llama.logits([1, 2, 3])
    # The kernels round activations to int8, which the reference does not.
    assert np.median(np.abs(logits - expected)) < 0.03 * np.std(expected)


def test_a_trained_model_keeps_its_story(tmp_path: Path, data: Path) -> None:
    models = data / "models"
    path = tmp_path / "stories.gguf"
    with open_checkpoint(models / "stories260K.bin") as checkpoint:
        done = quantize_checkpoint(checkpoint, models / "tok512.bin", path, Mixture.Q6_K)
    # Rows of 64 and 172 are no blocks of 256, and 172 not even of 32.
    assert {t.type for t in done.tensors} == {TensorType.Q8_0, TensorType.F16, TensorType.F32}
    told = []
    for model, tokenizer in ((models / "stories260K.bin", models / "tok512.bin"), (path, None)):
        with pyrllama.load(model, tokenizer_path=tokenizer, backend="reference") as llama:
            told.append(llama.generate("Once upon a time", temperature=0, max_tokens=20).text)
    assert told[0] == told[1]


def test_a_hugging_face_folder(tmp_path: Path, data: Path) -> None:
    folder, path = data / "models" / "tiny-random-llama-hf", tmp_path / "m.gguf"
    with open_checkpoint(folder) as checkpoint:
        quantize_checkpoint(checkpoint, folder / "tokenizer.json", path, Mixture.Q8_0)
        config = checkpoint.config
    with open_checkpoint(path) as checkpoint:
        constants = {"norm_eps": pytest.approx(config.norm_eps)}
        assert dataclasses.asdict(checkpoint.config) == dataclasses.asdict(config) | constants
        assert checkpoint.metadata["general.name"] == "tiny-random-llama-hf"


def test_experts_are_quantised_and_their_router_is_not(tmp_path: Path, tokenizer: Path) -> None:
    source, path = mixture_of_experts(), tmp_path / "m.gguf"
    done = quantize_checkpoint(source, tokenizer, path, Mixture.Q4_K_S)
    types = {tensor.name: tensor.type for tensor in done.tensors}
    assert types["blk.1.ffn_up_exps.weight"] is TensorType.Q4_K
    assert types["blk.1.ffn_gate_inp.weight"] is TensorType.F32
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.experts == Experts(4, 2)
        for name, info in checkpoint.tensors.items():
            assert info.shape == source.tensors[name].shape
            x = dequantize(TensorType.F32, source.read(name).data, info.shape[-1])
            stored = checkpoint.read(name).data
            np.testing.assert_array_equal(stored, quantize_fitted(info.type, x), name)
