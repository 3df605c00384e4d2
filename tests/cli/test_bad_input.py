"""Every bad input ends with one ``error:`` line and exit status 2, never with a traceback."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.cli import Run


def check(run: Run, path: Path, named: str) -> None:
    """Let the commands that read a checkpoint fail on ``path``."""
    for arguments in (
        ("--model-path", path, "--prompt", "x"),
        ("inspect", path),
    ):
        done = run(*arguments)
        assert done.status == 2, done
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert named in done.err
        assert done.out == ""


ENDLESS = Path("/dev/zero")


class Hostile:
    """Pickles to a call of ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def meta_folder(folder: Path, pickled: bytes) -> Path:
    """Make a Meta checkpoint around a pickle, and return its weights file."""
    params = '{"dim": 64, "n_layers": 1, "n_heads": 2, "norm_eps": 1e-5, "vocab_size": -1}'
    folder.joinpath("params.json").write_text(params, encoding="utf-8")
    weights = folder / "consolidated.00.pth"
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("consolidated/data.pkl", pickled)
        archive.writestr("consolidated/data/0", b"\0" * 4096)
    return weights


def test_a_missing_path(run: Run, tmp_path: Path) -> None:
    check(run, tmp_path / "nowhere.gguf", "nowhere.gguf")


def test_a_folder_without_weights(run: Run, tmp_path: Path) -> None:
    tmp_path.joinpath("notes.txt").write_text("no weights", encoding="utf-8")
    check(run, tmp_path, str(tmp_path))


def test_an_empty_file(run: Run, tmp_path: Path) -> None:
    tmp_path.joinpath("model.bin").touch()
    check(run, tmp_path / "model.bin", "model.bin")


def test_a_file_of_another_kind(run: Run, tmp_path: Path) -> None:
    tmp_path.joinpath("model.gguf").write_bytes(b"\x89PNG" + bytes(100))
    check(run, tmp_path / "model.gguf", "model.gguf")


def test_a_truncated_zip(run: Run, tmp_path: Path) -> None:
    weights = meta_folder(tmp_path, pickle.dumps({}))
    weights.write_bytes(weights.read_bytes()[:-100])
    check(run, tmp_path, "consolidated.00.pth")


def test_a_pickle_that_calls_os_system(run: Run, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    meta_folder(tmp_path, pickle.dumps(Hostile(f"touch {witness}"), protocol=2))
    check(run, tmp_path, "system")
    assert not witness.exists()


GGUF: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda whole: whole[:-1000],
    "header only": lambda _: b"GGUF" + struct.pack("<I", 3),
    "absurd tensor count": lambda whole: whole[:8] + struct.pack("<Q", 2**62) + whole[16:],
    "absurd key count": lambda whole: whole[:16] + struct.pack("<Q", 2**63 + 5) + whole[24:],
    "absurd string": lambda whole: whole[:24] + struct.pack("<Q", 2**60) + whole[32:],
    "unknown version": lambda whole: whole[:4] + struct.pack("<I", 99) + whole[8:],
    "unknown tensor type": lambda whole: _replace_type(whole, 9999),
    "size beyond the file": lambda whole: _replace_rows(whole, 2**40),
}

EMBEDDING = b"token_embd.weight"


def _replace_type(whole: bytes, code: int) -> bytes:
    """Change the type code of the embedding, which is a matrix."""
    place = whole.index(EMBEDDING) + len(EMBEDDING) + 4 + 2 * 8
    return whole[:place] + struct.pack("<I", code) + whole[place + 4 :]


def _replace_rows(whole: bytes, rows: int) -> bytes:
    place = whole.index(EMBEDDING) + len(EMBEDDING) + 4 + 8
    return whole[:place] + struct.pack("<Q", rows) + whole[place + 8 :]


@pytest.mark.parametrize("damage", GGUF)
def test_a_damaged_gguf_file(run: Run, data: Path, tmp_path: Path, damage: str) -> None:
    whole = data.joinpath("models", "llama-2-tiny-random.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF[damage](whole))
    check(run, path, "model.gguf")


def test_a_tensor_type_that_cannot_run_yet(run: Run, data: Path, tmp_path: Path) -> None:
    """Such a file opens for ``inspect``; generating names the type."""
    whole = data.joinpath("models", "llama-2-tiny-random.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(_replace_type(whole, 25))  # I16, of the same size as F16
    done = run("--model-path", path, "--prompt", "x")
    assert done.status == 2
    assert "I16" in done.err
    assert run("inspect", path).status == 0


def test_a_tokenizer_of_another_size(run: Run, data: Path, stories: Path) -> None:
    wrong = data / "tokenizers" / "llama2" / "tokenizer.model"
    done = run("--model-path", stories, "--tokenizer-path", wrong, "--prompt", "x")
    assert done.status == 2
    assert "32000" in done.err
    assert "512" in done.err


def test_a_prompt_longer_than_the_context_is_not_cut(run: Run, stories: Path) -> None:
    done = run("--model-path", stories, "--prompt", "Tom " * 50, "--max-seq-len", "30")
    assert done.status == 2
    assert "the context holds 30" in done.err
    assert done.out == ""


def test_a_prompt_file_that_is_not_utf8(run: Run, stories: Path, tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("caf\xe9".encode("latin-1"))
    done = run("--model-path", stories, "--prompt-file", path)
    assert done.status == 2
    assert f"{path}: the prompt is not UTF-8 at byte offset 3 (0xe9)" in done.err


def test_a_prompt_argument_that_is_not_utf8(run: Run, stories: Path) -> None:
    done = run("--model-path", stories, "--prompt", "caf\udce9")
    assert done.status == 2
    assert "--prompt is not UTF-8 at character 3" in done.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "there is no prompt"),
        (["--prompt", "x", "--prompt-file", "y"], "both given"),
        (["--prompt-file", "/nowhere/prompt.txt"], "/nowhere/prompt.txt"),
        (["--prompt-file", "/"], "cannot be read"),
        (["--prompt", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "x", "--temperature", "nan"], "temperature is nan"),
        (["--prompt", "x", "--top-k", "-1"], "top_k is -1"),
        (["--prompt", "x", "--top-k", "many"], "'many' is not a valid integer"),
        (["--prompt", "x", "--top-p", "0"], "top_p is 0.0"),
        (["--prompt", "x", "--repetition-penalty", "-2"], "repetition_penalty is -2.0"),
        (["--prompt", "x", "--seed", "-1"], "seed is -1"),
        (["--prompt", "x", "--max-seq-len", "0"], "max_seq_len is 0"),
        (["--prompt", "x", "--max-seq-len", "-5"], "max_seq_len is -5"),
        (["--prompt", "x", "--max-seq-len", "1000"], "context of 512"),
        (["--prompt", "x", "--max-tokens", "0"], "max_tokens is 0"),
        (["--prompt", "x", "--max-threads", "0"], "threads is 0"),
        (["--prompt", "x", "--quantize", "q9"], "'q9' is not one of"),
        (["--prompt", "x", "--f16", "--quantize", "q4_0"], "--f16 and --quantize q4_0"),
        (["--prompt", "x", "--backend", "gpu"], "'gpu' is not one of"),
        (["--prompt", "x", "--tokenizer-path", "/nowhere/t.model"], "/nowhere/t.model"),
        (["--prompt", "x", "--param-path", "/nowhere/params.json"], "params.json"),
        (["--prompt", "x", "surplus"], "surplus"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_settings(run: Run, stories: Path, arguments: list[str], named: str) -> None:
    done = run("-q", "--model-path", stories, *arguments)
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert named in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


@pytest.mark.skipif(not ENDLESS.exists(), reason="files of POSIX")
def test_an_endless_prompt_file(run: Run, stories: Path) -> None:
    done = run("--model-path", stories, "--prompt-file", ENDLESS)
    assert done.status == 2
    assert "more than 16 MiB" in done.err
