"""``rllama bench``: the figures follow from what was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.fake_model import FakeModel

from pyrllama import cpu
from pyrllama.cli.bench_work import Bench, Repetition, Workload, summarise
from pyrllama.core import BLOCK_TOKENS
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
    assert report["workload"] == {
        "prompt_tokens": 8,
        "generate_tokens": 4,
        "depth": 8,
        "sequences": 1,
        "repetitions": 2,
    }
    assert (report["weights"], report["kv_type"]) == ("F32", "f16")
    assert report["bytes_per_step"] == report["weight_bytes"] == 260_032 * 4
    decode = report["decode_tokens_per_second"]
    assert 0 < decode["min"] <= decode["median"] <= decode["max"]
    assert report["gigabytes_per_second"] == pytest.approx(
        decode["median"] * report["bytes_per_step"] / 1e9
    )
    assert report["share_of_bandwidth"] == pytest.approx(report["gigabytes_per_second"] / 12)
    assert report["first_token_seconds"] > 0
    assert report["load_seconds"] > 0
    assert report["machine"]["cpu"] == "abacus"
    assert "numba" in report["versions"]


def test_a_table_for_people(run: Run, stories: Path, machine: list[int]) -> None:
    done = run("bench", "--model-path", stories, *SMALL)
    assert machine == [3, 3]
    for words in (
        "weights F32, KV cache F16",
        "prompt of 8 tokens, then 4 behind a context of 8, 2 repetitions, 3 threads",
        "of 12.00 GB/s",
        "prefill",
        "abacus",
    ):
        assert words in done.out


def test_depth_sequences_and_the_type_of_the_cache(
    run: Run, stories: Path, machine: list[int]
) -> None:
    done = run(
        "bench", "--model-path", stories, *SMALL, "-d", "40", "--sequences", "3",
        "--kv-type", "f32", "--json",
    )  # fmt: skip
    report = json.loads(done.out)
    assert report["workload"]["depth"] == 40
    assert report["workload"]["sequences"] == 3
    assert report["kv_type"] == "f32"
    kv_bytes_per_token = 2 * 5 * 4 * 8 * 4  # keys and values, layers, heads, size, float32
    assert report["kv_cache_bytes_per_step"] == 3 * 42 * kv_bytes_per_token
    steps = report["decode_tokens_per_second"]["median"] / 3
    assert report["gigabytes_per_second"] == pytest.approx(steps * 260_032 * 4 / 1e9)
    people = run("bench", "--model-path", stories, *SMALL, "--sequences", "3")
    assert "3 sequences, prompt of 8 tokens" in people.out


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
    work = Workload(prompt_tokens=20, generate_tokens=6, depth=20, sequences=1, repetitions=3)
    heard: list[int] = []
    repetitions = Bench(model, work).run(heard.append)
    assert heard == [0, 1, 2, 3]
    assert len(repetitions) == 3
    assert all(each.prefill > 0 and each.decode > 0 for each in repetitions)
    warm_up_and_runs = (2 + 2) + 3 * (2 + 6)  # a prompt of 20 takes two batches of 16
    assert len(model.batches) == warm_up_and_runs


def test_decoding_begins_at_the_depth_with_the_whole_context_behind_it() -> None:
    model = FakeModel(n_blocks=4)
    Bench(model, Workload(5, 3, depth=40, sequences=1, repetitions=2)).run()
    starts = [(chunk.start, len(chunk.tokens)) for b in model.batches for chunk in b.chunks]
    filling, warm_up = [(0, 16), (16, 16), (32, 8)], [(40, 1), (41, 1)]
    repetition = [(0, 5), (40, 1), (41, 1), (42, 1)]
    assert starts == [*filling, *warm_up, *repetition, *repetition]
    # The fake model's tokens depend on all that its cache holds: the context is whole each time.
    decoded = [b.chunks[0].tokens for b in model.batches if b.chunks[0].start >= 40]
    assert decoded[2:5] == decoded[5:8]
    assert decoded[:2] == decoded[2:4]


def test_an_empty_context() -> None:
    model = FakeModel(n_blocks=1)
    Bench(model, Workload(1, 4, depth=0, sequences=1, repetitions=1)).run()
    assert [batch.chunks[0].start for batch in model.batches[-4:]] == [0, 1, 2, 3]


def test_sequences_go_side_by_side() -> None:
    work = Workload(prompt_tokens=10, generate_tokens=4, depth=33, sequences=3, repetitions=1)
    assert work.cache_tokens == 3 * 2 * BLOCK_TOKENS
    model = FakeModel(n_blocks=6)
    Bench(model, work).run()
    prefill = model.batches[-6:-4]  # 30 tokens of prompts in batches of 16
    assert [[(c.start, len(c.tokens), c.outputs) for c in b.chunks] for b in prefill] == [
        [(0, 10, 1), (0, 6, 0)],
        [(6, 4, 1), (0, 10, 1)],
    ]
    for step, batch in enumerate(model.batches[-4:]):
        assert [chunk.start for chunk in batch.chunks] == [33 + step] * 3


def test_more_sequences_than_a_batch_takes() -> None:
    with pytest.raises(SettingError, match="sequences is 17, but it must be at most 16"):
        Bench(FakeModel(n_blocks=17), Workload(1, 1, 0, sequences=17, repetitions=1))


def test_figures_follow_from_the_times() -> None:
    repetitions = [Repetition(prefill=seconds, decode=seconds) for seconds in (1.0, 2.0, 5.0)]
    work = Workload(prompt_tokens=100, generate_tokens=10, depth=50, sequences=2, repetitions=3)
    figures = summarise(FakeModel(), work, repetitions, (9000.0, 8000.0))
    assert figures["prefill_tokens_per_second"] == {"median": 100, "min": 40, "max": 200}
    assert figures["decode_tokens_per_second"] == {"median": 10, "min": 4, "max": 20}
    assert figures["first_token_seconds"] == 2.0
    assert figures["gigabytes_per_second"] == pytest.approx(5 * 900 / 1e9)
    assert figures["share_of_bandwidth"] == pytest.approx(0.5)
    assert figures["kv_cache_bytes_per_step"] == 2 * 55 * 8
    assert figures["kv_cache_gigabytes_per_second"] == pytest.approx(5 * 2 * 55 * 8 / 1e9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--shape", "110m", "--model-path", "x"], "Give either"),
        (["--shape", "8b"], "'8b' is not one of"),
        (["--shape", "110m", "--quantize", "q9"], "'q9' is not one of"),
        (["--shape", "110m", "--prompt-tokens", "0"], "prompt-tokens is 0"),
        (["--shape", "110m", "--generate-tokens", "0"], "generate-tokens is 0"),
        (["--shape", "110m", "--depth", "-1"], "depth is -1"),
        (["--shape", "110m", "--depth", "1000"], "depth + generate-tokens is 1064"),
        (["--shape", "110m", "--sequences", "0"], "sequences is 0"),
        (["--shape", "110m", "--kv-type", "q3"], "'q3' is not one of"),
        (["--shape", "110m", "--repetitions", "0"], "repetitions is 0"),
        (["--shape", "110m", "--threads", "0"], "threads is 0"),
        (["--shape", "110m", "--max-threads", "-1"], "threads is -1"),
        (["--shape", "110m", "--prompt-tokens", "1025", "--depth", "0"], "prompt-tokens is 1025"),
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
    Workload(4096, 96, 4000, 1, 1).check(config)
    with pytest.raises(SettingError, match="4097"):
        Workload(4096, 97, 4000, 1, 1).check(config)
    with pytest.raises(SettingError, match="4097"):
        Workload(4097, 1, 0, 1, 1).check(config)
