"""Meta's checkpoints: shards joined, parameters read, and what does not fit together."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.checkpoint_checks import DTYPES, check_checkpoint
from support.mutations import mutations
from support.tiny_models import random_weights, tiny_config
from support.torch_writer import (
    meta_arrays,
    meta_params,
    torch_records,
    write_meta_folder,
    write_torch_file,
    write_zip,
)

from pyrllama.checkpoints import meta, open_checkpoint
from pyrllama.checkpoints.meta import MetaCheckpoint
from pyrllama.errors import (
    CorruptFileError,
    ModelNotFoundError,
    RllamaError,
    TensorError,
    UnknownFormatError,
    UnsafePickleError,
    UnsupportedModelError,
    UnsupportedTypeError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pyrllama.tensors import TensorType

CONFIG = tiny_config(n_heads=8, n_kv_heads=8, head_dim=8)
WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "7B"


@pytest.mark.parametrize("embedding_axis", [0, 1])
@pytest.mark.parametrize("unzipped", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_any_number_of_shards_gives_the_same_tensors(
    folder: Path, shards: int, unzipped: bool, embedding_axis: int
) -> None:
    write_meta_folder(
        folder, CONFIG, WEIGHTS, shards=shards, unzipped=unzipped, embedding_axis=embedding_axis
    )
    with MetaCheckpoint(folder) as checkpoint:
        assert checkpoint.format == "Meta PyTorch" + (f", {shards} shards" if shards > 1 else "")
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


@pytest.mark.parametrize("type_", DTYPES)
def test_tensors_keep_the_type_of_the_file(folder: Path, type_: TensorType) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, shards=2, dtype=DTYPES[type_])
    with MetaCheckpoint(folder) as checkpoint:
        assert {info.type for info in checkpoint.tensors.values()} == {type_}
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


def test_grouped_queries_are_joined(folder: Path) -> None:
    config = tiny_config()
    weights = random_weights(config)
    write_meta_folder(folder, config, weights, shards=2)
    with MetaCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, config, weights)


def test_joined_tensors_are_in_memory_and_whole_ones_are_views(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, shards=2)
    with MetaCheckpoint(folder) as checkpoint:
        assert checkpoint.read("blk.0.attn_q.weight").data.flags.owndata
        assert not checkpoint.read("output_norm.weight").data.flags.owndata


def test_metadata_is_the_parameters(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS)
    with MetaCheckpoint(folder) as checkpoint:
        assert checkpoint.metadata == meta_params(CONFIG)


def test_open_checkpoint_recognises_the_folder_and_the_file(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS)
    for path in (folder, folder / "consolidated.00.pth"):
        with open_checkpoint(path) as checkpoint:
            assert isinstance(checkpoint, MetaCheckpoint)
            check_checkpoint(checkpoint, CONFIG, WEIGHTS)


# Where files are found.


def test_7b_unzipped_without_renaming_is_read(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, unzipped=True)
    (folder / "consolidated.00").rename(folder / "consolidated")
    assert meta.looks_like(folder)
    with MetaCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


def test_zip_unpacked_into_a_folder_of_its_name_is_read(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, unzipped=True)
    (folder / "consolidated.00").rename(folder / "inner")
    (folder / "consolidated.00").mkdir()
    (folder / "inner").rename(folder / "consolidated.00" / "consolidated")
    with MetaCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


def test_unzipped_folder_itself_is_read(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, unzipped=True)
    shutil.copy(folder / "params.json", folder / "consolidated.00")
    with MetaCheckpoint(folder / "consolidated.00") as checkpoint:
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


def test_zip_is_taken_where_it_was_unzipped_as_well(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS)
    write_meta_folder(folder, CONFIG, WEIGHTS, unzipped=True)
    shutil.rmtree(folder / "consolidated.00" / "data")
    with MetaCheckpoint(folder) as checkpoint:
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


def test_parameters_are_found_above_and_by_name(folder: Path, tmp_path: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS)
    (folder / "params.json").rename(tmp_path / "params.json")
    MetaCheckpoint(folder).close()
    (tmp_path / "params.json").rename(tmp_path / "other.json")
    with pytest.raises(ModelNotFoundError, match=r"7B/params\.json: .* --param-path"):
        MetaCheckpoint(folder)
    MetaCheckpoint(folder, tmp_path / "other.json").close()
    with pytest.raises(ModelNotFoundError, match=r"none\.json: "):
        MetaCheckpoint(folder, tmp_path / "none.json")


def test_missing_shard_is_named(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, shards=4)
    (folder / "consolidated.02.pth").unlink()
    with pytest.raises(ModelNotFoundError, match=r"shard 03 .* not consolidated\.02"):
        MetaCheckpoint(folder)


def test_one_of_several_shards_asks_for_the_folder(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, shards=2)
    with pytest.raises(ModelNotFoundError, match="is one of 2 shards; give the folder"):
        MetaCheckpoint(folder / "consolidated.00.pth")


def test_last_shard_missing_is_a_shape_that_does_not_fit(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, shards=2)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(TensorError, match=r"attn_q\.weight of shape \(32, 64\)"):
        MetaCheckpoint(folder)


def test_folder_without_weights_and_missing_path_are_named(tmp_path: Path) -> None:
    assert not meta.looks_like(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"no consolidated\.00\.pth in this folder"):
        MetaCheckpoint(tmp_path)
    assert not meta.looks_like(tmp_path / "none")
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        MetaCheckpoint(tmp_path / "none")


def test_hugging_face_weights_ask_for_their_folder(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "pytorch_model.bin", {"lm_head.weight": np.ones((2, 2), "f4")})
    with pytest.raises(UnknownFormatError, match=r"Hugging Face.*config\.json"):
        MetaCheckpoint(tmp_path / "pytorch_model.bin")


# Tensors that do not fit.


def write_arrays(folder: Path, **changed: Any) -> Path:
    """Write a folder of one shard with some tensors changed, or None left out."""
    write_meta_folder(folder, CONFIG, WEIGHTS)
    arrays = {**meta_arrays(WEIGHTS), **changed}
    kept = {name: array for name, array in arrays.items() if array is not None}
    write_torch_file(folder / "consolidated.00.pth", kept)
    return folder


@pytest.mark.parametrize(
    "name",
    ["tok_embeddings.weight", "layers.0.feed_forward.w1.weight", "layers.1.attention.wo.weight"],
)
def test_missing_tensor_is_named(folder: Path, name: str) -> None:
    with pytest.raises(TensorError, match=r"token_embd\.weight|ffn_gate\.weight|attn_output"):
        MetaCheckpoint(write_arrays(folder, **{name: None}))


def test_tensor_of_another_shape_is_named_with_both(folder: Path) -> None:
    wrong = {"layers.1.attention.wo.weight": np.ones((64, 63), np.float32)}
    with pytest.raises(TensorError, match=r"blk\.1\.attn_output\.weight .*\(64, 63\).*\(64, 64\)"):
        MetaCheckpoint(write_arrays(folder, **wrong))


def test_embedding_that_is_no_matrix_is_named(folder: Path) -> None:
    wrong = {"tok_embeddings.weight": np.ones(64, np.float32)}
    with pytest.raises(TensorError, match=r"token_embd\.weight has the shape \(64,\)"):
        MetaCheckpoint(write_arrays(folder, **wrong))


def test_tensor_that_llama_does_not_have_is_named(folder: Path) -> None:
    extra = {"layers.0.attention.wq.bias": np.ones(64, np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.attention\.wq\.bias"):
        MetaCheckpoint(write_arrays(folder, **extra))


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_weights_of_another_type_are_named(folder: Path, dtype: Any) -> None:
    wrong = {"norm.weight": np.ones(64, dtype)}
    with pytest.raises(UnsupportedTypeError, match=r"output_norm\.weight is stored as \w+Storage"):
        MetaCheckpoint(write_arrays(folder, **wrong))


def test_unused_tensor_may_have_any_type(folder: Path) -> None:
    with MetaCheckpoint(write_arrays(folder, **{"rope.freqs": np.arange(4)})) as checkpoint:
        check_checkpoint(checkpoint, CONFIG, WEIGHTS)


def write_shard(folder: Path, **changed: Any) -> Path:
    """Write two shards with tensors of the second one changed."""
    write_meta_folder(folder, CONFIG, WEIGHTS, shards=2)
    arrays = {**meta_arrays(WEIGHTS, shard=1, shards=2), **changed}
    kept = {name: array for name, array in arrays.items() if array is not None}
    write_torch_file(folder / "consolidated.01.pth", kept)
    return folder


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"norm.weight": None}, r"consolidated\.01\.pth: norm\.weight is in one shard"),
        ({"extra": np.ones(2, "f4")}, "extra is in one shard, but not in all"),
        ({"output.weight": np.ones((64, 64), "f2")}, "HalfStorage .* in shard 1.* FloatStorage"),
        ({"output.weight": np.ones((63, 64), "f4")}, r"\(63, 64\) in shard 1.*\(64, 64\)"),
    ],
)
def test_shards_that_differ_are_named(folder: Path, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(TensorError, match=problem):
        MetaCheckpoint(write_shard(folder, **changed))


def test_shards_that_give_no_shape_are_named(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, shards=2, n_kv_heads=2)
    with pytest.raises(TensorError, match=r"attn_k\.weight .* \(32, 64\) in each of 2 shards"):
        MetaCheckpoint(folder)


def test_name_that_the_checkpoint_lacks_is_an_error(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS)
    with MetaCheckpoint(folder) as checkpoint:
        for act in (checkpoint.read, checkpoint.release):
            with pytest.raises(TensorError, match=r"no tensor named blk\.9\.attn_q\.weight"):
                act("blk.9.attn_q.weight")


# Hostile and damaged files.


def test_pickle_that_calls_the_system_is_refused(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS)
    hostile = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R."
    write_zip(folder / "consolidated.00.pth", {"data.pkl": hostile})
    with pytest.raises(UnsafePickleError, match=r"calls posix\.system"):
        open_checkpoint(folder)


def test_truncated_shard_is_named(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS, shards=2)
    path = folder / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptFileError, match=r"consolidated\.01\.pth: .*truncated"):
        MetaCheckpoint(folder)


def test_file_that_is_only_called_a_shard_is_named(folder: Path) -> None:
    write_meta_folder(folder, CONFIG, WEIGHTS)
    (folder / "consolidated.00.pth").write_text("<html>not found</html>")
    with pytest.raises(UnknownFormatError, match=r"consolidated\.00\.pth: this is not a PyTorch"):
        MetaCheckpoint(folder)


def test_damaged_files_give_named_errors_or_tensors(folder: Path) -> None:
    config = tiny_config(dim=8, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=8, vocab_size=8)
    weights = random_weights(config)
    write_meta_folder(folder, config, weights)
    path = folder / "consolidated.00.pth"
    write_zip(path, torch_records(meta_arrays(weights)))
    for damaged in mutations(path.read_bytes(), 400):
        path.write_bytes(damaged)
        read_all(folder)
    write_zip(path, torch_records(meta_arrays(weights)))
    params = json.dumps(meta_params(config)).encode()
    for damaged in mutations(params, 200, seed=1):
        (folder / "params.json").write_bytes(damaged)
        read_all(folder)


def read_all(folder: Path) -> None:
    try:
        with MetaCheckpoint(folder) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except RllamaError as error:
        assert str(folder) in str(error)  # noqa: PT017 - success is as good
