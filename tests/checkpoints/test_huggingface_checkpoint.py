"""Hugging Face folders: every form of weights, every field that matters, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.checkpoint_checks import DTYPES, check_checkpoint
from support.hf_writer import (
    FORMS,
    Form,
    hf_arrays,
    hf_config,
    write_hf_folder,
    write_hf_weights,
)
from support.mutations import mutations
from support.tiny_models import random_weights, tiny_config
from support.torch_writer import write_zip
from support.transformers_models import FIXTURE_FOLDERS, load_fixture

from pyrllama.checkpoints import huggingface, open_checkpoint
from pyrllama.checkpoints.huggingface import HuggingFaceCheckpoint
from pyrllama.errors import (
    CorruptFileError,
    ModelNotFoundError,
    RllamaError,
    TensorError,
    UnsafePickleError,
    UnsupportedModelError,
    UnsupportedTypeError,
)
from pyrllama.model_config import Llama3Rope, ModelConfig

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.tensors import TensorType


CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)
ARRAYS = hf_arrays(CONFIG, WEIGHTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.mark.parametrize("type_", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors(folder: Path, form: Form, type_: TensorType) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS, form=form, dtype=DTYPES[type_])
    assert huggingface.looks_like(folder)
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert {info.type for info in checkpoint.tensors.values()} == {type_}
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ("safetensors", "Hugging Face safetensors"),
        ("sharded safetensors", "Hugging Face safetensors, 3 files"),
        ("bin", "Hugging Face PyTorch"),
        ("sharded bin", "Hugging Face PyTorch, 3 files"),
    ],
)
def test_format_names_the_files(folder: Path, form: Form, named: str) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS, form=form)
    with open_checkpoint(folder) as checkpoint:
        assert isinstance(checkpoint, HuggingFaceCheckpoint)
        assert checkpoint.format == named


@pytest.mark.parametrize("fixture", FIXTURE_FOLDERS, ids=lambda folder: folder.name)
def test_files_of_transformers_are_read(fixture: Path) -> None:
    expected = load_fixture(fixture)
    with HuggingFaceCheckpoint(fixture) as checkpoint:
        check_checkpoint(checkpoint, expected.config, expected.weights)


def test_published_folder_is_read(data: Path) -> None:
    with HuggingFaceCheckpoint(data / "models" / "tiny-random-llama-hf") as checkpoint:
        assert checkpoint.format == "Hugging Face PyTorch"
        assert checkpoint.config == ModelConfig(
            architecture="llama",
            vocab_size=32000,
            dim=4,
            n_layers=2,
            n_heads=2,
            n_kv_heads=2,
            head_dim=2,
            ffn_dim=4,
            norm_eps=1e-6,
            rope_theta=10000.0,
            context_length=2048,
        )
        assert len(checkpoint.tensors) == 21
        assert checkpoint.metadata["transformers_version"] == "4.28.0"
        norm = checkpoint.read("output_norm.weight").data.view(np.float32)
        np.testing.assert_array_equal(norm, np.ones((1, 4), np.float32))
        embedding = checkpoint.read("token_embd.weight").data.view(np.float32)
        assert embedding.shape == (32000, 4)
        assert 0.015 < embedding.std() < 0.025  # initializer_range is 0.02


def test_rows_are_permuted_to_the_interleaved_order(folder: Path) -> None:
    # One head of four: transformers keeps the pairs (0, 2) and (1, 3) half a head apart.
    config = tiny_config(dim=4, n_heads=1, n_kv_heads=1, head_dim=4)
    write_hf_folder(folder, config, random_weights(config))
    arrays = hf_arrays(config, random_weights(config))
    arrays["model.layers.0.self_attn.k_proj.weight"] = np.arange(16, dtype="f4").reshape(4, 4)
    write_hf_weights(folder, arrays, "safetensors")
    with HuggingFaceCheckpoint(folder) as checkpoint:
        first_column = checkpoint.read("blk.0.attn_k.weight").data.view(np.float32)[:, 0]
        assert first_column.tolist() == [0.0, 8.0, 4.0, 12.0]


def test_head_size_of_its_own_is_read(folder: Path) -> None:
    config = tiny_config(head_dim=8)
    write_hf_folder(folder, config, random_weights(config))
    with HuggingFaceCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, config, random_weights(config))


def test_queries_are_copied_and_the_rest_are_views(folder: Path) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS)
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.read("blk.0.attn_q.weight").data.flags.owndata
        assert not checkpoint.read("blk.0.attn_v.weight").data.flags.owndata


def test_safetensors_are_preferred(folder: Path) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS, form="safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.format == "Hugging Face safetensors"


def test_metadata_is_both_configs(folder: Path) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.metadata["hidden_size"] == 64
        assert checkpoint.metadata["generation_config"] == {"eos_token_id": [1, 2]}


def test_generation_config_says_how_to_sample(folder: Path) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS)
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.sampling_settings() == {}
    said = {"temperature": 0.6, "top_p": 0.9, "top_k": None, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(said))
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.sampling_settings() == {"temperature": 0.6, "top_p": 0.9}
    said = {"repetition_penalty": 1.1, "typical_p": 0.9, "min_p": 0.1, "top_k": 5}
    (folder / "generation_config.json").write_text(json.dumps(said))
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.sampling_settings() == {
            "top_k": 5, "min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.1, "repeat_last_n": -1,
        }  # fmt: skip


def test_a_config_with_a_field_of_that_name_says_nothing(folder: Path) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS)
    config = json.loads((folder / "config.json").read_text()) | {"generation_config": "x"}
    (folder / "config.json").write_text(json.dumps(config))
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert checkpoint.sampling_settings() == {}


def test_rope_frequencies_of_early_files_are_left_out(folder: Path) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float64)}
    write_hf_weights(folder, ARRAYS | extra, "safetensors")
    with HuggingFaceCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


def test_tied_model_has_no_output(folder: Path) -> None:
    tied = random_weights(CONFIG, tied=True)
    write_hf_folder(folder, CONFIG, tied)
    with HuggingFaceCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, CONFIG, tied)
    # Some files of tied models repeat the embedding.
    write_hf_weights(folder, ARRAYS, "safetensors")
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert "output.weight" not in checkpoint.tensors


# Weights that do not fit.


def test_folders_without_weights_or_config_are_named(folder: Path) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS)
    (folder / "model.safetensors").unlink()
    assert not huggingface.looks_like(folder)
    with pytest.raises(ModelNotFoundError, match=r"no weights beside config\.json: none of model"):
        HuggingFaceCheckpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"config\.json: cannot be read"):
        HuggingFaceCheckpoint(folder)


def write_arrays(folder: Path, arrays: dict[str, Any], form: Form = "safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(CONFIG)))
    write_hf_weights(folder, arrays, form)
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("lm_head.weight", r"lm_head\.weight is not there"),
        ("model.layers.1.mlp.up_proj.weight", r"blk\.1\.ffn_up\.weight"),
    ],
)
def test_missing_tensor_is_named(folder: Path, form: Form, name: str, named: str) -> None:
    arrays = {other: array for other, array in ARRAYS.items() if other != name}
    with pytest.raises(TensorError, match=named):
        HuggingFaceCheckpoint(write_arrays(folder, arrays, form))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (63, 64)),
        ("model.layers.0.self_attn.q_proj.weight", (4096,)),
        ("model.layers.0.self_attn.k_proj.weight", (64, 64)),
        ("model.norm.weight", (1, 64)),
        ("model.embed_tokens.weight", (127, 64)),
    ],
)
def test_tensor_of_another_shape_is_named(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    arrays = ARRAYS | {name: np.ones(shape, np.float32)}
    pattern = ", ".join(map(str, shape))
    with pytest.raises(TensorError, match=rf"weight of shape \({pattern},?\) where"):
        HuggingFaceCheckpoint(write_arrays(folder, arrays))


def test_tensor_that_llama_does_not_have_is_named(folder: Path) -> None:
    arrays = ARRAYS | {"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"has blk\.0\.attn_q\.bias, which the llama"):
        HuggingFaceCheckpoint(write_arrays(folder, arrays))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_of_another_type_are_named(folder: Path, form: Form) -> None:
    arrays = ARRAYS | {"model.norm.weight": np.ones(64, np.float64)}
    with pytest.raises(UnsupportedTypeError, match=r"output_norm\.weight is stored as (F64|Doub)"):
        HuggingFaceCheckpoint(write_arrays(folder, arrays, form))


def write_index(folder: Path, index: Any) -> Path:
    write_arrays(folder, ARRAYS, "sharded safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "a\0b", 7],
)
def test_index_stays_in_the_folder(folder: Path, file: Any) -> None:
    with pytest.raises(CorruptFileError, match=r"weight_map has .* not a file of the folder"):
        HuggingFaceCheckpoint(write_index(folder, {"weight_map": {"a": file}}))


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": None}])
def test_index_without_files_is_named(folder: Path, index: Any) -> None:
    with pytest.raises(CorruptFileError, match=r"index\.json: has no weight_map"):
        HuggingFaceCheckpoint(write_index(folder, index))


def test_index_of_another_kind_is_named(folder: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"weight_map is .* must be an object"):
        HuggingFaceCheckpoint(write_index(folder, {"weight_map": [1]}))


def test_file_that_the_index_names_must_be_there(folder: Path) -> None:
    write_arrays(folder, ARRAYS, "sharded safetensors")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"model-00002-of-00003\.safetensors: "):
        HuggingFaceCheckpoint(folder)


def test_tensor_that_the_index_names_must_be_there(folder: Path) -> None:
    weight_map = {"other": "model-00001-of-00003.safetensors"}
    with pytest.raises(TensorError, match=r"model-00001-of-00003\.safetensors: lacks other"):
        HuggingFaceCheckpoint(write_index(folder, {"weight_map": weight_map}))


def test_name_that_the_checkpoint_lacks_is_an_error(folder: Path) -> None:
    write_hf_folder(folder, CONFIG, WEIGHTS)
    with HuggingFaceCheckpoint(folder) as checkpoint, pytest.raises(TensorError, match="named x"):
        checkpoint.read("x")


# Hostile and damaged files.


def test_pickle_that_calls_the_system_is_refused(folder: Path) -> None:
    write_arrays(folder, ARRAYS, "bin")
    hostile = b"\x80\x02cbuiltins\nexec\nX\x04\x00\x00\x00pass\x85R."
    write_zip(folder / "pytorch_model.bin", {"data.pkl": hostile})
    with pytest.raises(UnsafePickleError, match=r"pytorch_model\.bin: .* calls builtins\.exec"):
        open_checkpoint(folder)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_truncated_weights_are_named(folder: Path, form: Form) -> None:
    write_arrays(folder, ARRAYS, form)
    path = next(path for path in folder.iterdir() if path.name != "config.json")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptFileError, match=rf"{path.name}: .*truncated"):
        HuggingFaceCheckpoint(folder)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_damaged_weights_give_named_errors_or_tensors(folder: Path, form: Form) -> None:
    config, arrays = tiny_files()
    write_arrays(folder, arrays, form)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    path = next(path for path in folder.iterdir() if path.name != "config.json")
    content = path.read_bytes()
    read_all(folder, succeeds=True)
    for damaged in mutations(content, 300):
        path.write_bytes(damaged)
        read_all(folder)


def test_damaged_configs_give_named_errors_or_tensors(folder: Path) -> None:
    config, arrays = tiny_files()
    config = dataclasses.replace(config, rope_scaling=Llama3Rope())
    write_arrays(folder, arrays, "sharded safetensors")
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    read_all(folder, succeeds=True)
    for name in ("config.json", "model.safetensors.index.json"):
        content = (folder / name).read_bytes()
        for damaged in mutations(content, 300, seed=1):
            (folder / name).write_bytes(damaged)
            read_all(folder)
        (folder / name).write_bytes(content)


def tiny_files() -> tuple[ModelConfig, dict[str, Any]]:
    config = tiny_config(dim=8, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=8, vocab_size=8)
    return config, hf_arrays(config, random_weights(config))


def read_all(folder: Path, *, succeeds: bool = False) -> None:
    try:
        with HuggingFaceCheckpoint(folder) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except RllamaError as error:
        assert str(folder) in str(error)  # noqa: PT017 - success is as good
        assert not succeeds
