"""``bench/rivals.py`` with programs that print what real ones once printed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import rivals
from contenders import Turn
from programs import ProgramError, run, run_json_lines
from works import Kind, Work, names, parse_work

from pyrllama.checkpoints.gguf_writer import PendingTensor, write_gguf
from pyrllama.checkpoints.random import RandomCheckpoint
from pyrllama.model_config import ModelConfig
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = {
    "llama-bench": """
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rates = {"0": [30.0, 31.0, 29.0], "1": [17.0, 17.5, 16.5]}
for flash in words["-fa"].split(","):
    print(json.dumps({
        "build_commit": "0c1e570", "build_number": 1, "n_prompt": int(words["-p"]),
        "n_gen": int(words["-n"]), "n_depth": int(words.get("-d", 0)),
        "flash_attn": int(flash), "avg_ts": 1.0, "samples_ts": rates[flash],
    }))
""",
    "llama-batched-bench": """
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("main: some words before", file=sys.stderr)
print(json.dumps({
    "pp": int(words["-npp"]), "tg": int(words["-ntg"]), "pl": int(words["-npl"]),
    "speed_pp": 300.0, "speed_tg": 90.0 if words["-fa"] == "on" else 80.0, "speed": 100.0,
}))
""",
    "llama-completion": 'print("hi there"); block = bytearray(96 << 20)\n',
    "rllama": """
sys.argv.remove("--json") if "--json" in sys.argv else None
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if sys.argv[1] == "generate":
    print("hi there")
else:
    counts = [int(words[f"--{n}"]) for n in
              ("prompt-tokens", "generate-tokens", "depth", "sequences", "repetitions")]
    print(json.dumps({
        "workload": counts, "versions": {"pyrllama": "0.1.0"},
        "prefill_tokens_per_second": {"median": 750.0},
        "decode_tokens_per_second": {"median": 45.0},
        "gigabytes_per_second": 33.0, "share_of_bandwidth": 0.94,
        "read_bandwidth_gigabytes_per_second": {"before": 35.0, "after": 34.0},
    }))
""",
    "transformers-python": """
print(json.dumps({"samples": [620.0, 630.0, 610.0], "version": "5"}))
""",
}
"""Every option has a value, but for ``rllama bench --json``."""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in PROGRAMS.items():
        file = folder / name
        file.write_text(f"#!{sys.executable} -IS\nimport json, sys\n{code}", "utf-8")
        file.chmod(0o755)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a GGUF of which the shape alone is read."""
    config = ModelConfig("llama", 64, 32, 1, 1, 1, 32, 32, 1e-5, 10_000.0, 64)
    checkpoint = RandomCheckpoint(config, TensorType.F32, tied=True)
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    tensors = [
        PendingTensor(info, lambda name=name: iter([checkpoint.read(name).data]))  # type: ignore[misc]
        for name, info in checkpoint.tensors.items()
    ]
    path = tmp_path / "tiny-f32.gguf"
    write_gguf(path, metadata, tensors)
    return path


class Compared:
    """Runs the script in this process and reads what it wrote."""

    def __init__(self, programs: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs, self.model, self._monkeypatch = programs, model, monkeypatch
        self.results = model.with_name("results") / "rivals.jsonl"

    def __call__(self, *options: str, status: int = 0) -> list[dict[str, Any]]:
        words = ["rivals.py", str(self.programs / "llama-bench"), str(self.model)]
        words += ["--rllama", str(self.programs / "rllama"), "--results", str(self.results)]
        self._monkeypatch.setattr(sys, "argv", [*words, *options])
        assert rivals.main() == status
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_text("utf-8").splitlines()]


@pytest.fixture
def compared(programs: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Compared:
    monkeypatch.setattr(rivals, "MACHINE", 'print(\'{"cpu": "abacus"}\')')
    return Compared(programs, model, monkeypatch)


def options_of(program: dict[str, Any]) -> dict[str, str]:
    """Return the options of a command that have a value."""
    words = [word for word in program["command"] if word != "--json"]
    start = 2 if words[0] == "rllama" else 1
    return dict(zip(words[start::2], words[start + 1 :: 2], strict=True))


def test_prefill_and_decode_are_measured_by_default(compared: Compared) -> None:
    prefill, decode = compared("--rounds", "2", "--repetitions", "4", "--threads", "3")
    for result, work in ((prefill, "prefill:512"), (decode, "decode")):
        assert (result["model"], result["work"]) == ("tiny-f32", work)
        assert (result["threads"], result["machine"]) == (3, {"cpu": "abacus"})
        theirs, ours = result["programs"]["llama.cpp"], result["programs"]["pyrllama"]
        assert (theirs["value"], theirs["turns"]) == (30.0, [30.0, 30.0])
        assert (theirs["version"], theirs["flash_attention"]) == ("0c1e570", 0)
        assert theirs["command"][:3] == ["llama-bench", "-m", "tiny-f32.gguf"]
        assert options_of(theirs)["-r"] == options_of(ours)["--repetitions"] == "4"
        assert options_of(theirs)["-t"] == options_of(ours)["--max-threads"] == "3"
        assert ours["command"][:4] == ["rllama", "bench", "--model-path", "tiny-f32.gguf"]
    theirs, ours = prefill["programs"]["llama.cpp"], prefill["programs"]["pyrllama"]
    assert (options_of(theirs)["-p"], options_of(theirs)["-n"]) == ("512", "0")
    assert options_of(ours)["--prompt-tokens"] == "512"
    assert ours["value"] == 750.0
    assert "share_of_bandwidth" not in ours
    theirs, ours = decode["programs"]["llama.cpp"], decode["programs"]["pyrllama"]
    assert (options_of(theirs)["-p"], options_of(theirs)["-n"]) == ("0", "32")
    assert "-d" not in options_of(theirs)
    assert (options_of(ours)["--depth"], options_of(ours)["--generate-tokens"]) == ("0", "32")
    assert ours["value"] == 45.0
    assert ours["share_of_bandwidth"] == 0.94
    assert ours["bandwidth"] == 35.0


def test_depth(compared: Compared) -> None:
    (result,) = compared("--work", "depth:8192", "--generate-tokens", "16")
    theirs, ours = (options_of(result["programs"][name]) for name in ("llama.cpp", "pyrllama"))
    assert (theirs["-p"], theirs["-n"], theirs["-d"], theirs["-fa"]) == ("0", "16", "8192", "0,1")
    assert (ours["--prompt-tokens"], ours["--generate-tokens"]) == ("1", "16")
    assert ours["--depth"] == "8192"


def test_sequences(compared: Compared) -> None:
    (result,) = compared("--work", "sequences:8", "--generate-tokens", "16")
    rival = result["programs"]["llama.cpp"]
    assert (rival["value"], rival["flash_attention"]) == (90.0, 1)
    assert rival["command"][0] == "llama-batched-bench"
    theirs, ours = options_of(rival), options_of(result["programs"]["pyrllama"])
    assert (theirs["-npl"], theirs["-npp"], theirs["-ntg"]) == ("8", "32", "16")
    assert theirs["-c"] == str(8 * (32 + 16))
    assert (ours["--sequences"], ours["--depth"], ours["--generate-tokens"]) == ("8", "32", "16")


def test_start_and_memory(compared: Compared) -> None:
    start, memory = compared("--work", "start", "--work", "memory", "--rounds", "1")
    for result in (start, memory):
        theirs, ours = result["programs"]["llama.cpp"], result["programs"]["pyrllama"]
        assert theirs["command"][0] == "llama-completion"
        assert (theirs["command"][-1], ours["command"][1]) == ("0", "generate")
        assert theirs["value"] > 0
    assert start["programs"]["llama.cpp"]["value"] < 60
    assert memory["programs"]["llama.cpp"]["value"] > 96 << 20


def test_transformers_take_part_where_they_can(compared: Compared) -> None:
    python = str(compared.programs / "transformers-python")
    works = ["--work", "prefill:64", "--work", "decode", "--work", "start", "--rounds", "1"]
    prefill, decode, start = compared(*works, "--transformers", python)
    both = ["transformers bf16", "transformers f32"]
    assert list(prefill["programs"]) == list(decode["programs"]) == [
        "llama.cpp", *both, "pyrllama",
    ]  # fmt: skip
    assert list(start["programs"]) == ["llama.cpp", "pyrllama"]
    command = prefill["programs"][both[0]]["command"]
    assert prefill["programs"][both[0]]["value"] == 620.0
    assert command[:2] == ["transformers-python", "transformers_speed.py"]
    shape = json.loads(command[2])
    assert (shape["vocab_size"], shape["dim"], shape["tied"]) == (64, 32, True)
    assert command[-2:] == ["--prompt-tokens", "64"]
    assert decode["programs"][both[1]]["command"][-2:] == ["--generate-tokens", "32"]


def test_a_rival_that_fails_is_left_out(
    compared: Compared, capsys: pytest.CaptureFixture[str]
) -> None:
    (compared.programs / "llama-completion").write_text("#!/bin/sh\necho no vocabulary >&2; exit 3")
    (result,) = compared("--work", "start")
    assert list(result["programs"]) == ["pyrllama"]
    assert len(result["programs"]["pyrllama"]["turns"]) == 3
    assert capsys.readouterr().err.count("llama.cpp is left out") == 1


def test_our_own_failure_ends_the_run(
    compared: Compared, capsys: pytest.CaptureFixture[str]
) -> None:
    (compared.programs / "rllama").write_text("#!/bin/sh\necho error: it broke >&2; exit 2")
    assert compared(status=1) == []
    assert "status 2: error: it broke" in capsys.readouterr().err


def test_results_are_appended(compared: Compared) -> None:
    compared("--work", "decode", "--rounds", "1")
    assert len(compared("--work", "depth:5", "--rounds", "1")) == 2


# --- the parts --------------------------------------------------------------------------------


def test_turns_are_taken_in_turn(tmp_path: Path) -> None:
    order: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name
            self._values = iter([3.0, 1.0, 2.0])

        def turn(self, work: Work, model: Path) -> Turn:
            order.append(self.name)
            value = next(self._values)
            return Turn(value, ["program", str(model)], {"seen": value})

    programs = rivals.compare(Work(Kind.DECODE), tmp_path, [Fake("a"), Fake("b")], rounds=3)
    assert order == ["a", "b"] * 3
    assert programs["a"] == programs["b"] == {
        "value": 2.0, "turns": [3.0, 1.0, 2.0], "command": ["program", tmp_path.name], "seen": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("work", [Work(kind, 7 if f"{kind}:N" in names() else 0) for kind in Kind])
def test_works_have_names(work: Work) -> None:
    assert parse_work(str(work)) == work


@pytest.mark.parametrize("bad", ["", "prefill", "prefill:0", "prefill:x", "decode:1", "dance"])
def test_other_works_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"is none of prefill:N, decode, depth:N"):
        parse_work(bad)


def test_a_bad_work_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rivals.py", "llama-bench", "m.gguf", "--work", "prefil"])
    with pytest.raises(SystemExit):
        rivals.main()
    assert "'prefil' is none of prefill:N" in capsys.readouterr().err


def test_programs_that_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="cannot be run: No such file"):
        run([str(tmp_path / "none")])
    with pytest.raises(ProgramError, match="no JSON"):
        run_json_lines([sys.executable, "-c", "print(1)"])
    with pytest.raises(ProgramError, match="not JSON"):
        run_json_lines([sys.executable, "-c", "print('{')"])
