"""A history grows by whole lines, and what is wrong with one is said with its number."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.bench_runs import line, record

import pyrllama
from pyrllama import cpu
from pyrllama.cli.bench_history import append, prepare, read, source_commit
from pyrllama.errors import HistoryError

if TYPE_CHECKING:
    from support.cli import Run

SMALL = ("--prompt-tokens", "4", "--generate-tokens", "2", "--repetitions", "1")


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "speed.jsonl"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "read_bandwidth", lambda _: 1e10)


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("measured")
def test_every_run_appends_its_report(run: Run, stories: Path, history: Path) -> None:
    reports = []
    for threads in ("1", "2"):
        done = run(
            "bench", "--model-path", stories, *SMALL,
            "--threads", threads, "--history", history, "--json",
        )  # fmt: skip
        assert done.status == 0
        reports.append(json.loads(done.out))
    lines = [json.loads(text) for text in history.read_text("utf-8").splitlines()]
    now = dt.datetime.now(dt.UTC)
    for found, report in zip(lines, reports, strict=True):
        assert now - dt.datetime.fromisoformat(found.pop("time")) < dt.timedelta(minutes=5)
        assert found.pop("commit") == source_commit()
        assert found == report
    first, second = read(history)
    assert first.decode == reports[0]["decode_tokens_per_second"]["median"]
    assert first.prefill == reports[0]["prefill_tokens_per_second"]["median"]
    assert first.share == reports[0]["share_of_bandwidth"]
    assert first.label.startswith("stories260K.bin F32, 1 thread of ")
    assert first.label.endswith(", prompt 4, context 4")
    assert "2 threads" in second.label


def test_a_line_that_lost_its_end_is_not_run_into(history: Path) -> None:
    history.write_bytes(line().rstrip())
    append(history, record())
    assert len(read(history)) == 2


def test_what_is_there_is_never_changed(history: Path) -> None:
    before = line() + b"\n" + b"damaged\n"
    history.write_bytes(before)
    append(history, record())
    assert history.read_bytes().startswith(before)
    assert history.read_bytes().count(b"\n") == 4


def test_programs_that_append_at_once_keep_their_lines_apart(history: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pyrllama.cli import bench_history as h\n"
        "sys.path.insert(0, sys.argv[2]); from support.bench_runs import record\n"
        "h.source_commit = lambda: 'x' * 20000\n"
        "for _ in range(50): h.append(Path(sys.argv[1]), record())\n"
    )
    tests, root = Path(__file__).parents[1], Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(history), str(tests)]
    programs = [subprocess.Popen(command, cwd=root) for _ in range(3)]
    assert [each.wait() for each in programs] == [0, 0, 0]
    assert len(read(history)) == 150


@pytest.mark.usefixtures("measured")
def test_a_history_that_cannot_be_written_is_refused_before_measuring(
    run: Run, stories: Path, tmp_path: Path
) -> None:
    for bad in (tmp_path, tmp_path / "no" / "speed.jsonl"):
        done = run("bench", "--model-path", stories, *SMALL, "--history", bad)
        assert (done.status, done.out) == (2, "")
        assert str(bad) in done.err


def test_another_file_is_not_taken_for_a_history(run: Run, stories: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.bin"
    content = stories.read_bytes()
    other.write_bytes(content)
    done = run("bench", "--model-path", stories, *SMALL, "--history", other)
    assert done.status == 2
    assert f"{other}:1: this is not a line of" in done.err
    assert other.read_bytes() == content


def test_a_history_may_begin_empty(history: Path) -> None:
    prepare(history)
    assert history.read_bytes() == b""
    prepare(history)
    append(history, record())
    prepare(history)
    assert len(read(history)) == 1


# --- the commit -------------------------------------------------------------------------------


COMMIT = "0123456789abcdef" * 2 + "01234567"
OTHER = "f" * 40


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the package seem to lie in a source tree of its own."""
    package = tmp_path / "tree" / "pyrllama"
    monkeypatch.setattr(pyrllama, "__file__", str(package / "__init__.py"))
    (package.parent / ".git").mkdir(parents=True)
    return package.parent


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def test_a_branch(tree: Path) -> None:
    write(tree / ".git" / "HEAD", "ref: refs/heads/a/b\n")
    write(tree / ".git" / "refs" / "heads" / "a" / "b", f"{COMMIT}\n")
    write(tree / ".git" / "packed-refs", f"{OTHER} refs/heads/a/b\n")  # older than the file
    assert source_commit() == "0123456789ab"


def test_a_packed_branch(tree: Path) -> None:
    write(tree / ".git" / "HEAD", "ref: refs/heads/main\n")
    packed = (
        f"# pack-refs with: peeled\n{OTHER} refs/heads/ma\n{COMMIT} refs/heads/main\n^{OTHER}\n"
    )
    write(tree / ".git" / "packed-refs", packed)
    assert source_commit() == "0123456789ab"


@pytest.mark.parametrize("digits", [40, 64])
def test_a_detached_head(tree: Path, digits: int) -> None:
    write(tree / ".git" / "HEAD", ("0123456789abcdef" * 4)[:digits] + "\n")
    assert source_commit() == "0123456789ab"


def test_a_linked_worktree(tree: Path, tmp_path: Path) -> None:
    (tree / ".git").rmdir()
    write(tree / ".git", "gitdir: ../main/.git/worktrees/tree\n")
    write(tmp_path / "main/.git/worktrees/tree/HEAD", "ref: refs/heads/topic\n")
    write(tmp_path / "main/.git/worktrees/tree/commondir", "../..\n")
    write(tmp_path / "main/.git/refs/heads/topic", f"{COMMIT}\n")
    assert source_commit() == "0123456789ab"


@pytest.mark.parametrize(
    "head", [None, "", "ref: refs/heads/none", "ref: ../../x", "word", "0" * 39, "\udcff"]
)
def test_the_version_where_there_is_no_commit(tree: Path, head: str | None) -> None:
    if head is not None:
        (tree / ".git" / "HEAD").write_text(head, "utf-8", errors="surrogateescape")
    assert source_commit() == pyrllama.__version__


# --- reading ----------------------------------------------------------------------------------


def test_what_a_line_says(history: Path) -> None:
    work = {"prompt_tokens": 1, "depth": 8192, "sequences": 8}
    other = line(workload=work, kv_type="q8_0", source="a/b.gguf", time="2026-11-02T01:00+02:00")
    history.write_bytes(line(commit="v", threads=1) + b"\n" + other)
    first, second = read(history)
    assert first.time == dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
    assert (first.commit, first.decode, first.prefill, first.share) == ("v", 40, 300, 0.9)
    assert first.label == "1b Q4_0, 1 thread of abacus, prompt 512, context 512"
    assert second.time == dt.datetime(2026, 11, 1, 23, tzinfo=dt.UTC)
    assert second.label == (
        "b.gguf Q4_0, 2 threads of abacus, prompt 1, context 8192, 8 sequences, KV cache q8_0"
    )


def without(name: str) -> bytes:
    return json.dumps({k: v for k, v in record().items() if k != name}).encode()


DAMAGED: list[tuple[bytes, str]] = [
    (b"{", "Expecting"),
    (line()[:100], "Unterminated string"),
    (b"\xff\xfe{}", "decode"),
    (b"[]", "list"),
    (b"null", "NoneType"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"time": ' + b"9" * 5000 + b"}", "digits"),
    (b" " * (1 << 20) + b"{}", "longer than"),
    *((without(name), f"no field '{name}'") for name in record()),
    (line(time="yesterday"), "yesterday"),
    (line(time=5), "must be str"),
    (line(time="0001-01-01T00:00:00+00:00"), "the year 1 "),
    (line(time="0001-01-01T00:00:00+14:00"), "out of range"),
    (line(commit=None), "commit is not a text"),
    (line(threads="2"), "threads is not a number"),
    (line(threads=True), "threads is not a number"),
    (line(share_of_bandwidth=float("nan")), "share_of_bandwidth is nan"),
    (line(share_of_bandwidth=-1), "share_of_bandwidth is -1"),
    (line(share_of_bandwidth=10**400), "too large"),
    (line(decode_tokens_per_second=4), "int"),
    (line(decode_tokens_per_second={}), "no field 'median'"),
    (line(machine=[]), "list"),
    (line(workload={"prompt_tokens": 1, "depth": 1}), "no field 'sequences'"),
]


@pytest.mark.parametrize(("damaged", "named"), DAMAGED, ids=lambda value: str(value)[:30])
def test_a_damaged_line_is_named(history: Path, damaged: bytes, named: str) -> None:
    history.write_bytes(line() + b"\n" + damaged)
    with pytest.raises(HistoryError) as caught:
        read(history)
    assert caught.value.line == 3
    assert str(caught.value).startswith(f"{history}:3: ")
    assert named in str(caught.value)


def test_half_a_character_does_no_harm(history: Path) -> None:
    history.write_bytes(line(commit="\ud800"))
    assert read(history)[0].commit == "?"


def test_histories_that_are_not_there(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"\n\n")
    for path, problem in (
        (tmp_path, "cannot be read"),
        (tmp_path / "none", "cannot be read"),
        (empty, "no runs"),
    ):
        with pytest.raises(HistoryError, match=problem):
            read(path)


def test_nothing_is_lost_when_the_disk_is_full(
    history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.write_bytes(line())
    real_open = Path.open

    class Full:
        """A file that takes half of what is written."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, data: bytes) -> int:
            return int(self._file.write(data[: len(data) // 2]))

    def open_(path: Path, mode: str, **options: Any) -> Any:
        file = real_open(path, mode, **options)
        return Full(file) if mode.startswith("a") else file

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(HistoryError, match="disk is full"):
        append(history, record())
