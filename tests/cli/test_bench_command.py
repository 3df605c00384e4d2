"""``rllama bench``: the figures follow from what was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.fake_model import FakeModel

from pyrllama import cpu
from pyrllama.cli.bench import Workload, measure, summarise
from pyrllama.core import Timings
from pyrllama.errors import SettingError

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run

SMALL = ("--prompt-tokens", "8", "--generate-tokens", "4", "--repetitions", "2")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace the measurement of the memory; return the thread counts it was asked for."""
    asked: list[int] = []

    def read_bandwidth(threads: int) -> float:
        asked.append(threads)
        return 10e9 + len(asked) * 1e9

    monkeypatch.setattr(cpu, "read_bandwidth", read_bandwidth)
    monkeypatch.setattr(cpu, "default_threads", lambda: 3)
    monkeypatch.setattr(cpu, "machine", lambda: {"cpu": "abacus", "features": ["avx2"]})
    return asked


def test_json(run: Run, stories: Path, machine: list[int]) -> None:
    done = run("bench", "--model-path", stories, *SMALL, "--threads", "2", "--json")
    assert done.status == 0
    report = json.loads(done.out)
    assert machine == [2, 2]
    assert report["read_bandwidth_gigabytes_per_second"] == {"before": 11.0, "after": 12.0}
    assert report["workload"] == {"prompt_tokens": 8, "generate_tokens": 4, "repetitions": 2}
    assert report["weights"] == "as stored"
    assert report["bytes_per_token"] == report["weight_bytes"] == 260_032 * 4
    decode = report["decode_tokens_per_second"]
    assert 0 < decode["min"] <= decode["median"] <= decode["max"]
    assert report["gigabytes_per_second"] == pytest.approx(
        decode["median"] * report["bytes_per_token"] / 1e9
    )
    assert report["share_of_bandwidth"] == pytest.approx(report["gigabytes_per_second"] / 12)
    assert report["first_token_seconds"] > 0
    assert report["load_seconds"] > 0
    assert report["machine"]["cpu"] == "abacus"
    assert "numba" in report["versions"]


def test_a_table_for_people(run: Run, stories: Path, machine: list[int]) -> None:
    done = run("bench", "--model-path", stories, *SMALL)
    assert machine == [3, 3]
    for words in ("8 + 4 tokens, 2 repetitions, 3 threads", "of 12.00 GB/s", "prefill", "abacus"):
        assert words in done.out


def test_the_compiled_kernels(run: Run, stories: Path) -> None:
    """Nothing is replaced here: the memory is measured too."""
    done = run("bench", "--model-path", stories, *SMALL, "--backend", "cpu", "--json")
    report = json.loads(done.out)
    assert report["threads"] == cpu.default_threads()
    assert report["machine"] == json.loads(json.dumps(cpu.machine()))
    assert min(report["read_bandwidth_gigabytes_per_second"].values()) > 0.1
    assert 0 < report["share_of_bandwidth"] < 2


def test_every_repetition_is_as_long() -> None:
    model = FakeModel(n_blocks=4)
    timings = measure(model, Workload(20, 6, 3))
    assert [(t.prompt_tokens, t.generated_tokens) for t in timings] == [(20, 6)] * 3
    warm_up_and_runs = (2 + 1) + 3 * (2 + 5)  # a prompt of 20 takes two batches of 16
    assert len(model.batches) == warm_up_and_runs


def test_figures_follow_from_the_timings() -> None:
    timings = [Timings(100, seconds, 11, seconds) for seconds in (1.0, 2.0, 5.0)]
    figures = summarise(FakeModel(), Workload(100, 11, 3), timings, (9000.0, 8000.0))
    assert figures["prefill_tokens_per_second"] == {"median": 50, "min": 20, "max": 100}
    assert figures["decode_tokens_per_second"] == {"median": 5, "min": 2, "max": 10}
    assert figures["first_token_seconds"] == 2.0
    assert figures["gigabytes_per_second"] == pytest.approx(5 * 900 / 1e9)
    assert figures["share_of_bandwidth"] == pytest.approx(0.5)
    assert figures["kv_cache_bytes_per_token"] == int(105.5 * 8)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--shape", "110m", "--model-path", "x"], "Give either"),
        (["--shape", "8b"], "'8b' is not one of"),
        (["--shape", "110m", "--quantize", "q9"], "'q9' is not one of"),
        (["--shape", "110m", "--prompt-tokens", "0"], "prompt-tokens is 0"),
        (["--shape", "110m", "--generate-tokens", "1"], "generate-tokens is 1"),
        (["--shape", "110m", "--repetitions", "0"], "repetitions is 0"),
        (["--shape", "110m", "--threads", "0"], "threads is 0"),
        (["--shape", "110m", "--max-threads", "-1"], "threads is -1"),
        (["--shape", "110m", "--prompt-tokens", "1000"], "model's context of 1024"),
        (["--model-path", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_settings(run: Run, arguments: list[str], named: str) -> None:
    done = run("bench", *arguments)
    assert done.status == 2
    assert named in done.err
    assert done.out == ""


def test_a_context_that_is_just_long_enough() -> None:
    config = FakeModel().config  # of 4096 tokens
    Workload(4000, 96, 1).check(config)
    with pytest.raises(SettingError, match="4097"):
        Workload(4000, 97, 1).check(config)
