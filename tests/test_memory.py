"""What a model will take of the memory, what is free, and the refusal with its way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

from pyrllama import cpu, memory
from pyrllama.core import BLOCK_TOKENS
from pyrllama.errors import NotEnoughMemoryError
from pyrllama.loading import load_model
from pyrllama.memory import MemoryNeed, check_memory, estimate, free_memory
from pyrllama.model_config import Experts
from pyrllama.reference.backend import ReferenceBackend
from pyrllama.tensors import TensorInfo, TensorType

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pyrllama.model_config import ModelConfig


GB = 10**9


def checkpoint(*, tied: bool = False, **overrides: Any) -> MemoryCheckpoint:
    """Return a tiny model of float16 matrices."""
    config = tiny_config(**overrides)
    return MemoryCheckpoint(config, random_weights(config, tied=tied), TensorType.F16)


def headers(source: MemoryCheckpoint) -> tuple[ModelConfig, Iterable[TensorInfo]]:
    """Return what the estimate is made of."""
    return source.config, source.tensors.values()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [None, TensorType.F32, TensorType.Q8_0, TensorType.Q4_0])
@pytest.mark.parametrize(
    ("sizes", "kv_type"),
    [
        ({}, TensorType.F16),
        ({"ffn_dim": 100, "vocab_size": 77}, TensorType.F32),
        ({"head_dim": 20}, TensorType.Q8_0),
    ],
)
def test_the_estimate_is_what_the_kernels_take(
    tied: bool, kind: TensorType | None, sizes: dict[str, int], kv_type: TensorType
) -> None:
    source = checkpoint(tied=tied, **sizes)
    need = estimate(*headers(source), kind, 100, compiled=True, kv_type=kv_type)
    model = cpu.load_model(source, type=kind, kv_type=kv_type, max_seq_len=100, threads=1)
    try:
        vectors = 4 * 64 * (2 * 2 + 1)  # norms, which weight_bytes leaves out
        assert need.weights == model.weight_bytes + vectors
        assert need.kv_cache == model.n_blocks * BLOCK_TOKENS * model.kv_bytes_per_token
        assert need.total == need.weights + need.kv_cache + need.working
    finally:
        model.close()


def test_the_estimate_counts_biases_norms_and_all_experts() -> None:
    source = checkpoint(attention_bias=True, qk_norm=True, experts=Experts(5, 2), ffn_dim=40)
    need = estimate(*headers(source), TensorType.Q8_0, 100, compiled=True)
    model = cpu.load_model(source, type=TensorType.Q8_0, max_seq_len=100, threads=1)
    try:
        norms = 4 * 64 * (2 * 2 + 1)
        beside = 2 * 4 * (4 * 16 + 2 * 32 + 2 * 16)  # biases of q, of k and v; norms of a head
        assert need.weights == model.weight_bytes + norms + beside
    finally:
        model.close()


def test_the_estimate_is_what_the_reference_takes() -> None:
    source = checkpoint()
    need = estimate(*headers(source), TensorType.Q4_0, 100, compiled=False)
    model = ReferenceBackend(source, 100)
    assert need.weights == model.weight_bytes
    assert need.kv_cache == model.n_blocks * BLOCK_TOKENS * model.kv_bytes_per_token


def test_a_type_that_cannot_run_counts_as_stored() -> None:
    source = checkpoint()
    infos = [TensorInfo(name, (256, 256), TensorType.Q8_K) for name in source.tensors]
    need = estimate(source.config, infos, None, 100, compiled=True)
    assert need.weights == len(infos) * 256 * 292
    assert not need.repacked


def test_codebooks_that_are_written_out_are_told() -> None:
    source = checkpoint()
    infos = [TensorInfo(name, (256, 256), TensorType.IQ2_XXS) for name in source.tensors]
    need = estimate(source.config, infos, None, 100, compiled=True)
    assert need.weights == len(infos) * 256 * 106
    assert need.repacked == len(infos) * 256 * (106 - 66)
    assert "of it because codebooks are written out" in str(need)
    assert not estimate(source.config, infos, TensorType.Q4_0, 100, compiled=True).repacked


def test_what_it_says() -> None:
    need = MemoryNeed(3_800_000_000, 537_000_000, 12_000_000, free=8 * GB)
    assert str(need) == (
        "needs 4.3 GB of memory (weights 3.8 GB, KV cache 537.0 MB, working 12.0 MB), "
        "8.0 GB are free"
    )
    assert need.fits
    assert str(MemoryNeed(1, 2, 3)).endswith("working 3 B)")
    assert MemoryNeed(10**18, 0, 0).fits  # where nothing is known, nothing is refused


def set_free(monkeypatch: pytest.MonkeyPatch, amount: int | None) -> None:
    """Let so many bytes be free."""
    monkeypatch.setattr(memory, "free_memory", lambda: amount)


@pytest.mark.parametrize("kind", [TensorType.Q8_0, TensorType.Q4_0])
def test_a_refusal_names_the_type_that_fits(
    monkeypatch: pytest.MonkeyPatch, kind: TensorType
) -> None:
    source = checkpoint(vocab_size=4096)
    set_free(monkeypatch, None)
    room = estimate(*headers(source), kind, 32, compiled=True).total
    set_free(monkeypatch, room)
    said = f"the model needs .* are free; --quantize {kind.name.lower()} would take"
    with pytest.raises(NotEnoughMemoryError, match=said):
        check_memory(*headers(source), None, 32, compiled=True)
    assert check_memory(*headers(source), kind, 32, compiled=True).total == room


def test_a_refusal_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 1000)
    with pytest.raises(NotEnoughMemoryError, match=r"1\.0 kB are free; even --quantize q4_0 .*"):
        check_memory(*headers(checkpoint()), None, 32, compiled=True)


def test_the_reference_cannot_be_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 1000)
    with pytest.raises(NotEnoughMemoryError, match="--backend cpu"):
        check_memory(*headers(checkpoint()), None, 32, compiled=False)


def test_load_refuses_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 1000)
    told: list[Any] = []

    def load(*, check: bool) -> None:
        load_model(
            checkpoint(), backend="reference", weight_type=None, max_seq_len=32, threads=None,
            progress=None, check_memory=check, on_memory=told.append,
        )  # fmt: skip

    with pytest.raises(NotEnoughMemoryError, match="--no-memory-check"):
        load(check=True)
    assert not told
    load(check=False)
    assert told[0].free == 1000


# --- what is free -----------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a folder be the system's ``/``, with 8 GiB available and no control group."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    put(tmp_path / "proc" / "meminfo", "MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")
    return tmp_path


def put(path: Path, text: str) -> None:
    """Write a file and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_free_without_control_groups(system: Path) -> None:
    assert free_memory() == 8 << 30


def test_free_in_a_control_group(system: Path) -> None:
    put(system / "proc" / "self" / "cgroup", "0::/user/me\n")
    for folder, limit, usage in (("", "max", 10), ("user", "5000", 3000), ("user/me", "max", 7)):
        put(system / "cgroup" / folder / "memory.max", f"{limit}\n")
        put(system / "cgroup" / folder / "memory.current", f"{usage}\n")
        put(system / "cgroup" / folder / "memory.stat", "anon 1\ninactive_file 700\n")
    assert free_memory() == 5000 - 3000 + 700  # the limit is the parent's


def test_free_in_a_control_group_of_version_1(system: Path) -> None:
    put(system / "proc" / "self" / "cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    folder = system / "cgroup" / "memory"  # inside a container its own group is the root
    put(folder / "memory.limit_in_bytes", "4096\n")
    put(folder / "memory.usage_in_bytes", "5000\n")
    put(folder / "memory.stat", "total_inactive_file 100\n")
    assert free_memory() == 0


@pytest.mark.parametrize(
    "text", ["", "MemAvailable: lots\n", "MemAvailable:\n", "\xff".encode().hex()]
)
def test_free_is_unknown_elsewhere(system: Path, text: str) -> None:
    put(system / "proc" / "meminfo", text)
    put(system / "proc" / "self" / "cgroup", "nonsense\n0::/\n4:memory\n")
    put(system / "cgroup" / "memory.max", "many\n")
    assert free_memory() is None


def test_free_on_this_machine() -> None:
    amount = free_memory()
    assert amount is None or amount > 10_000_000
