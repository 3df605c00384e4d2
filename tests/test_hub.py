"""Models from the hub: which files are chosen, how they come, and every way to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants, file_download
from support.hub_server import Hub, Repository, hub_with_empty_cache, point_hub_at

from pyrllama import hub
from pyrllama.errors import (
    HubAccessError,
    HubChoiceError,
    HubConnectionError,
    HubError,
    HubNotFoundError,
    HubReferenceError,
)
from pyrllama.hub import Reference, parse_reference, pull
from pyrllama.hub_files import HubFile, choose, normalised, runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = bytes(range(256)) * 4000
GGUF = Repository({"tiny.Q8_0.gguf": MODEL, "tiny.Q4_0.gguf": b"four", "README.md": b"#"})
ANY = Reference("o/gguf")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Let a server on this machine be the hub, with an empty cache."""
    with hub_with_empty_cache(tmp_path / "cache", monkeypatch) as running:
        running.repositories["o/gguf"] = GGUF
        yield running


# --- references -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("o/r", Reference("o/r")),
        ("hf:o/r", Reference("o/r")),
        ("hf:o/r:q4_0", Reference("o/r", "main", "q4_0")),
        ("o/r:sub/a.gguf", Reference("o/r", "main", "sub/a.gguf")),
        ("o/r@v1.2:Q8_0", Reference("o/r", "v1.2", "Q8_0")),
        ("my-org/a.b_c-1", Reference("my-org/a.b_c-1")),
    ],
)
def test_references(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text", ["", "hf:", "model", "a/b/c", "o/r:", "o/r@", "o /r", "../r", "https://h/o/r", "ö/r"]
)
def test_what_is_no_reference(text: str) -> None:
    if text == "../r":
        with pytest.raises(HubReferenceError, match="cannot be a repository"):
            pull(parse_reference(text))
        return
    with pytest.raises(HubReferenceError, match="names no model on the hub"):
        parse_reference(text)


# --- which files ------------------------------------------------------------------------------


def files(*names: str, size: int | None = 2_000_000_000) -> list[HubFile]:
    """Return files of these names."""
    return [HubFile(name, size) for name in names]


def chosen(names: list[str], wanted: str | None = None) -> list[str]:
    """Return the names that are taken of these."""
    return [file.path for file in choose(files(*names), wanted).files]


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        ("llama-2-7b.Q4_K_M.gguf", "Q4_K_M"),
        ("Model-Q8_0.gguf", "Q8_0"),
        ("model_q4_0.gguf", "Q4_0"),
        ("x-fp16.gguf", "F16"),
        ("x-BF16.gguf", "BF16"),
        ("x.MXFP4.gguf", "MXFP4"),
        ("x-UD-IQ2_XXS.gguf", "IQ2_XXS"),
        ("f16-model.q5_1.gguf", "Q5_1"),
        ("Q8_0/model.gguf", None),
        ("x.Q4_0_4_4.gguf", None),
        ("Qwen2-7B.gguf", None),
    ],
)
def test_the_quantisation_in_a_name(name: str, quantisation: str | None) -> None:
    assert HubFile(name).quantisation == quantisation


def test_spellings_and_what_runs() -> None:
    assert [normalised(name) for name in ("fp16", "bf16", "q4_k_m")] == ["F16", "BF16", "Q4_K_M"]
    assert runs("Q8_0")
    assert runs("BF16")
    assert runs("IQ2_XXS")
    assert runs("Q4_K_M")
    assert not runs("Q8_1")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["a.Q4_0.gguf", "a.Q8_0.gguf", "a.f16.gguf"], "a.Q8_0.gguf"),
        (["a.Q4_0.gguf", "a.f16.gguf", "a.bf16.gguf"], "a.f16.gguf"),
        (["a.Q4_0.gguf", "a.f32.gguf"], "a.Q4_0.gguf"),
        (["a.IQ2_XXS.gguf", "a.gguf"], "a.gguf"),
        (["a.Q2_K.gguf", "a.Q4_K_M.gguf", "a.Q4_0.gguf"], "a.Q4_K_M.gguf"),
        (["a-Q8_0-00001-of-00002.gguf", "a-Q4_0.gguf"], "a-Q4_0.gguf"),
        (["mmproj-a-Q8_0.gguf", "a-Q4_0.gguf"], "a-Q4_0.gguf"),
        (["a-Q8_0.gguf", "config.json", "model.safetensors"], "a-Q8_0.gguf"),
    ],
)  # fmt: skip
def test_the_best_gguf(names: list[str], taken: str) -> None:
    selection = choose(files(*names))
    assert [file.path for file in selection.files] == [taken]
    assert not selection.is_folder


def test_a_gguf_by_quantisation_or_name() -> None:
    names = ["sub/a.Q4_0.gguf", "a.Q8_0.gguf", "a.Q4_K_S.gguf"]
    assert chosen(names, "q4_0") == ["sub/a.Q4_0.gguf"]
    assert chosen(names, "a.Q4_0.gguf") == ["sub/a.Q4_0.gguf"]
    assert chosen(names, "sub/a.Q4_0.gguf") == ["sub/a.Q4_0.gguf"]


TRANSFORMERS = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
                "tokenizer_config.json"]  # fmt: skip


def test_safetensors_go_before_pytorch() -> None:
    names = [*TRANSFORMERS, "model.safetensors", "pytorch_model.bin", "README.md", "onnx/m.onnx"]
    assert sorted(chosen(names)) == sorted([*TRANSFORMERS, "model.safetensors"])
    assert choose(files(*names)).is_folder
    assert chosen(names, "model.safetensors") == chosen(names)
    assert sorted(chosen([*TRANSFORMERS, "pytorch_model.bin"])) == sorted(
        [*TRANSFORMERS, "pytorch_model.bin"]
    )


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_shards_come_with_their_index(stem: str, suffix: str) -> None:
    index = f"{stem}.{suffix}.index.json"
    shards = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    others = [f"sub/{shards[0]}", f"consolidated.{suffix}", "model-00001-of-00002.txt"]
    taken = chosen(["config.json", *others, *shards, index])
    assert taken == ["config.json", index, *shards]


def test_metas_own_files() -> None:
    original = ["original/params.json", "original/consolidated.00.pth",
                "original/consolidated.01.pth", "original/tokenizer.model"]  # fmt: skip
    assert sorted(chosen(["README.md", "tokenizer.json", *original])) == sorted(original)
    assert choose(files(*original)).is_folder


def test_another_file_comes_with_its_tokenizer() -> None:
    names = ["stories15M.bin", "stories42M.bin", "tokenizer.bin", "README.md"]
    selection = choose(files(*names), "stories15M.bin")
    assert [file.path for file in selection.files] == ["stories15M.bin", "tokenizer.bin"]
    assert not selection.is_folder


@pytest.mark.parametrize(
    ("names", "wanted", "said"),
    [
        (["x-Q8_0.gguf", "y-Q8_0.gguf"], None, r"2 files may be Q8_0: x-Q8_0.gguf \(2.0 GB\), y-"),
        (["x.gguf", "y.gguf"], None, "2 files may be the model"),
        (["x/a.gguf", "y/a.gguf"], "a.gguf", "2 files may be a.gguf"),
        (["a.Q8_0.gguf"], "q4_0", r"no GGUF file of Q4_0; there are a.Q8_0.gguf \(2.0 GB\)"),
        (["a.Q8_0.gguf"], "b.gguf", "no file 'b.gguf', and that is no quantisation"),
        (["a.Q8_1.gguf", "a.Q8_0.gguf"], "q8_1", "does not run, only.*a.Q8_0.gguf"),
        (["config.json", "model.safetensors"], "q8_0", "leave :Q8_0 out and convert"),
        (["a-Q8_0-00001-of-00002.gguf"], "q8_0", "parts cannot be read.*llama-gguf-split"),
        (["a-Q8_0-00001-of-00002.gguf"], "a-Q8_0-00001-of-00002.gguf", "parts cannot be read"),
        (["a-Q8_0-00001-of-00002.gguf"], None, "neither a whole GGUF"),
        (["stories15M.bin"], None, r"there are stories15M.bin \(2.0 GB\): name one"),
        (["model.safetensors"], None, "neither"),
        (["README.md"], None, "no weights at all"),
        ([], None, "no weights at all"),
        ([f"{i:02}.bin" for i in range(20)], None, r"11.bin \(2.0 GB\) and 8 more"),
    ],
)
def test_what_cannot_be_decided(names: list[str], wanted: str | None, said: str) -> None:
    with pytest.raises(HubChoiceError, match=said):
        choose(files(*names), wanted)


def test_a_size_may_be_unknown() -> None:
    with pytest.raises(HubChoiceError, match=r"there are a\.Q8_0\.gguf$"):
        choose(files("a.Q8_0.gguf", size=None), "Q4_0")


# --- the transfer -----------------------------------------------------------------------------


def test_the_best_file_comes_once(server: Hub) -> None:
    path = pull(ANY)
    assert path.name == "tiny.Q8_0.gguf"
    assert path.read_bytes() == MODEL
    assert len(server.transfers()) == 1
    assert pull(ANY) == path
    assert len(server.transfers()) == 1  # the second time it came out of the cache


def test_a_quantisation_of_a_revision(server: Hub) -> None:
    path = pull(Reference("o/gguf", GGUF.commit, "q4_0"))
    assert path.read_bytes() == b"four"
    assert server.transfers() == [f"GET /o/gguf/resolve/{GGUF.commit}/tiny.Q4_0.gguf"]


def test_a_folder(server: Hub) -> None:
    held = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}
    server.repositories["o/hf"] = Repository({**held, "pytorch_model.bin": b"pickle"})
    folder = pull(Reference("o/hf"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == held


def test_a_transfer_that_breaks_off_goes_on(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    server.drop_after = 300_000
    assert pull(ANY).read_bytes() == MODEL
    first, second = server.transfers()
    assert first == "GET /o/gguf/resolve/main/tiny.Q8_0.gguf"
    assert second == f"{first} bytes=300000-"


def test_a_new_commit_is_fetched(server: Hub) -> None:
    old = pull(ANY)
    server.repositories["o/gguf"] = Repository({"tiny.Q8_0.gguf": b"new"}, commit="d" * 40)
    new = pull(ANY)
    assert (old.read_bytes(), new.read_bytes()) == (MODEL, b"new")


def test_a_wrong_digest_leaves_nothing_behind(server: Hub, tmp_path: Path) -> None:
    server.repositories["o/bad"] = Repository({"a.gguf": b"forged"}, lies=True)
    with pytest.raises(HubError, match=r"a.gguf: what arrived has SHA-256 .* pull again"):
        pull(Reference("o/bad"))
    assert not any(b"forged" in file.read_bytes() for file in _cached_files(tmp_path))


def _cached_files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_token_opens_a_private_repository(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories["o/private"] = Repository({"a.gguf": b"secret"}, token="hf_mine")
    with pytest.raises(HubNotFoundError, match="no repository o/private, or it is private"):
        pull(Reference("o/private"))
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert pull(Reference("o/private")).read_bytes() == b"secret"


# --- failures ---------------------------------------------------------------------------------


def test_named_errors(server: Hub) -> None:
    server.repositories["o/gated"] = Repository({"a.gguf": b""}, gated=True)
    with pytest.raises(HubAccessError, match=r"o/gated is gated: accept .*huggingface.co/o/gated"):
        pull(Reference("o/gated"))
    with pytest.raises(HubNotFoundError, match="no repository o/none"):
        pull(Reference("o/none"))
    with pytest.raises(HubNotFoundError, match="o/gguf has no revision 'v9'"):
        pull(Reference("o/gguf", "v9"))
    with pytest.raises(HubChoiceError, match=r"^o/gguf: there is no GGUF file of F16"):
        pull(Reference("o/gguf", wanted="f16"))


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (403, HubAccessError, r"refuses this token \(status 403\)"),
        (400, HubError, "the hub answers with an error"),
        (404, HubError, "the hub answers with an error"),
        (503, HubConnectionError, r"cannot be reached .* not in the cache"),
    ],
)
def test_statuses(server: Hub, status: int, error: type[HubError], said: str) -> None:
    server.status = status
    with pytest.raises(error, match=said):
        pull(ANY)


def test_a_server_that_is_no_hub(server: Hub) -> None:
    server.status = 200  # with {} for an answer
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        pull(ANY)


def test_a_disk_that_is_full(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", no_space)
    with pytest.raises(HubError, match=r"o/gguf: the download failed.*No space left on device"):
        pull(ANY)


def test_offline_takes_the_cache(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull(ANY)
    n_requests = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(ANY) == path
    assert pull(Reference("o/gguf", GGUF.commit, "tiny.Q8_0.gguf")) == path
    assert len(server.requests) == n_requests
    with pytest.raises(HubChoiceError, match="no GGUF file of Q4_0; there are tiny"):
        pull(Reference("o/gguf", wanted="q4_0"))
    with pytest.raises(HubConnectionError, match=r"o/other is not in the cache .*HF_HUB_OFFLINE"):
        pull(Reference("o/other"))
    with pytest.raises(HubConnectionError, match="HF_HUB_OFFLINE"):
        pull(Reference("o/gguf", "v9"))


def test_offline_without_any_cache(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubConnectionError, match="HF_HUB_OFFLINE forbids"):
        pull(ANY)


def test_without_a_connection_the_cache_serves(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull(ANY)
    point_hub_at("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    assert pull(ANY) == path
    with pytest.raises(HubConnectionError, match="o/other: the hub cannot be reached"):
        pull(Reference("o/other"))


def test_the_variables_of_the_hub_are_obeyed(server: Hub, tmp_path: Path) -> None:
    """A process of its own: ``huggingface_hub`` reads its variables once."""
    code = "import pyrllama.hub as h; print(h.pull(h.parse_reference('hf:o/gguf:q4_0')))"
    variables = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (tmp_path / "home" / "hub").as_posix() in done.stdout
    assert done.stderr == ""
    assert hub.cache_folder() == tmp_path / "cache"
