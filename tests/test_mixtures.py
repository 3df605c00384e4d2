"""Which type each tensor gets, against what llama.cpp's ``llama-quantize --dry-run`` printed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.tiny_models import GOLDEN, tiny_config

from pyrllama.errors import SettingError
from pyrllama.mixtures import Mixture, parse_mixture, tensor_types
from pyrllama.model_config import Experts
from pyrllama.models.llama import OUTPUT, expected_tensors
from pyrllama.models.rope import ROPE_FACTORS
from pyrllama.tensors import TensorInfo, TensorType

MODELS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "mixtures.json").read_text("utf-8"))
IMPORTANCE = " imatrix"


def types_of(model: dict[str, Any], mixture: Mixture, **choices: bool) -> dict[str, TensorType]:
    config = tiny_config(**model["config"])
    skipped = {ROPE_FACTORS, OUTPUT} if model["tied"] else {ROPE_FACTORS}
    infos = {
        name: TensorInfo(name, shape, TensorType.F16)
        for name, shape in expected_tensors(config).items()
        if name not in skipped
    }
    return tensor_types(config, infos, mixture, **choices)


def spelled_out(line: str, n_layers: int) -> dict[str, TensorType]:
    """Return the types that a golden line tells: ``attn_v Q6_K:0-1,4 Q4_K:2-3; ...``."""
    types = {}
    for entry in line.split("; "):
        kind, *runs = entry.split(" ")
        for run in runs:
            name, _, layers = run.partition(":")
            if kind in {"token_embd", "output"}:
                types[f"{kind}.weight"] = TensorType[name]
                continue
            for span in (layers or f"0-{n_layers - 1}").split(","):
                first, _, last = span.partition("-")
                for layer in range(int(first), int(last or first) + 1):
                    types[f"blk.{layer}.{kind}.weight"] = TensorType[name]
    return types


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_has_the_type_of_llama_cpp(name: str) -> None:
    model = MODELS[name]
    for mixture in set(Mixture) - {Mixture.MXFP4}:
        for has_importance in (False, True):
            lines = model["types"]
            line = lines.get(mixture.name + IMPORTANCE * has_importance, lines[mixture.name])
            got = types_of(model, mixture, has_importance=has_importance)
            matrices = {tensor: type_ for tensor, type_ in got.items() if "norm" not in tensor}
            assert matrices == spelled_out(line, model["config"]["n_layers"]), mixture


def test_vectors_are_f32_whatever_they_were() -> None:
    got = types_of(MODELS["3 layers"], Mixture.Q2_K)
    assert {type_ for name, type_ in got.items() if "norm" in name} == {TensorType.F32}


@pytest.mark.parametrize("mixture", [Mixture.Q4_K_M, Mixture.Q2_K, Mixture.MXFP4, Mixture.TQ1_0])
def test_pure_gives_every_matrix_one_type(mixture: Mixture) -> None:
    got = types_of(MODELS["32 layers"], mixture, pure=True)
    assert {type_ for name, type_ in got.items() if "norm" not in name} == {mixture.type}


def test_mxfp4_keeps_bits_for_the_output_alone() -> None:
    got = types_of(MODELS["32 layers"], Mixture.MXFP4)
    assert got.pop(OUTPUT) is TensorType.Q6_K
    assert {type_ for name, type_ in got.items() if "norm" not in name} == {TensorType.MXFP4}


@pytest.mark.parametrize(
    ("name", "mixture"),
    [
        ("q4_k_m", Mixture.Q4_K_M),
        ("Q4_K", Mixture.Q4_K_M),
        ("Q3_K", Mixture.Q3_K_M),
        ("fp16", Mixture.F16),
        ("IQ4_xs", Mixture.IQ4_XS),
    ],
)
def test_names(name: str, mixture: Mixture) -> None:
    assert parse_mixture(name) is mixture


@pytest.mark.parametrize("name", ["", "Q4", "IQ2_S", "Q4_K_L"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(SettingError, match=r"must be one of F32, F16, BF16, Q8_0, .*TQ1_0"):
        parse_mixture(name)


def types_of_experts(mixture: Mixture, n_experts: int) -> dict[str, TensorType]:
    sizes = {"dim": 256, "ffn_dim": 256, "head_dim": 64, "n_layers": 16}
    config = tiny_config(**sizes, experts=Experts(n_experts, 2))
    infos = {
        name: TensorInfo(name, shape, TensorType.F16)
        for name, shape in expected_tensors(config).items()
        if name != ROPE_FACTORS
    }
    return tensor_types(config, infos, mixture)


def test_experts_have_the_types_of_a_feed_forward_network() -> None:
    got = types_of_experts(Mixture.Q4_K_M, n_experts=4)
    assert got["blk.0.ffn_down_exps.weight"] is TensorType.Q6_K
    assert got["blk.3.ffn_down_exps.weight"] is TensorType.Q4_K
    assert got["blk.0.ffn_gate_exps.weight"] is TensorType.Q4_K
    assert got["blk.0.ffn_gate_inp.weight"] is TensorType.F32
    assert got["blk.0.attn_k.weight"] is got["blk.3.attn_v.weight"] is TensorType.Q4_K


def test_the_attention_beside_eight_experts_has_more_bits() -> None:
    got = types_of_experts(Mixture.Q4_K_M, n_experts=8)
    assert got["blk.3.attn_k.weight"] is got["blk.3.attn_v.weight"] is TensorType.Q8_0
    assert got["blk.3.attn_output.weight"] is TensorType.Q5_K
    assert got["blk.3.attn_q.weight"] is TensorType.Q4_K
    larger = types_of_experts(Mixture.Q5_K_M, n_experts=8)
    assert larger["blk.3.attn_output.weight"] is TensorType.Q5_K


def test_mxfp4_is_for_experts_where_there_are_any() -> None:
    got = types_of_experts(Mixture.MXFP4, n_experts=4)
    experts = {type_ for name, type_ in got.items() if "_exps" in name}
    others = {type_ for name, type_ in got.items() if "norm" not in name and "ffn" not in name}
    assert (experts, others) == ({TensorType.MXFP4}, {TensorType.Q8_0})
