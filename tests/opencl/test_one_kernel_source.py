"""The source of the one-kernel step: code for each product of few forms of layers, else a table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

from pyrllama.opencl.layout import BLOCK
from pyrllama.opencl.local_memory import LocalMemory
from pyrllama.opencl.parts import Part, stage_stacks
from pyrllama.opencl.persistent import (
    can_persist,
    can_stamp,
    gives_pairs,
    n_barriers,
    places,
)
from pyrllama.opencl.persistent_source import (
    can_copy,
    layer_forms,
    persistent_defines,
    persistent_source,
)
from pyrllama.opencl.tuning import Tuning
from pyrllama.opencl.weights import Matrix
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyrllama.model_config import ModelConfig

CONFIG = tiny_config(dim=64, n_layers=3, vocab_size=96)
WHOLE = Part(range(3), embeds=True, ends=True)
ROOM = LocalMemory(segment_floats=CONFIG.ffn_dim, segment_blocks=CONFIG.ffn_dim // BLOCK)
"""Local memory that holds whole rows of all activations."""


def matrices_of(
    part: Part,
    *changed: str,
    kind: TensorType = TensorType.F16,
    config: ModelConfig = CONFIG,
) -> dict[str, list[Matrix]]:
    """Return a part's matrices in a type, and in F32 those of the groups that are named."""
    checkpoint = MemoryCheckpoint(config, random_weights(config))
    found = {}
    for held in (kind, TensorType.F32):
        for group, stacks in stage_stacks(checkpoint, part, held).items():
            if held is kind or group in changed:
                found[group] = [Matrix(stack.extent, None, None, 0, 0) for stack in stacks]
    return found


def source(matrices: Mapping[str, list[Matrix]], part: Part, *, copies: bool = True) -> str:
    copies = copies and can_copy(matrices, part)
    return persistent_source(
        matrices, CONFIG, part, n_buffers=1, copies=copies, activation_bytes=512
    )


@pytest.mark.parametrize("ends", [False, True])
def test_layers_that_are_alike_have_code_for_each_product(ends: bool) -> None:
    part = Part(range(3), embeds=True, ends=ends)
    text = source(matrices_of(part), part)
    assert text.count('\n#line 1 "step.cl"') == 4 + ends
    assert text.count("\n#line") == text.count("#line")
    assert "WORD_AT(nth" not in text.split("persistent_step(")[1]
    rows = [line.split()[2] for line in text.splitlines() if line.startswith("#define STEP_ROWS")]
    qkv = CONFIG.q_dim + 2 * CONFIG.kv_dim
    assert rows == [str(n) for n in (qkv, 64, 2 * CONFIG.ffn_dim, 64, *[96] * ends)]
    # A layer's last product asks for the next one's first, and at the end for the output.
    assert text.count("if (layer + 1 < n_layers)") == 1
    assert text.count(f"ASK(nth + 1, 4, 96, {64 // 8}, CALL_F16)") == ends


@pytest.mark.parametrize(
    ("changed", "forms"),
    [(["0.qkv"], [0, 1, 1]), (["2.ffn_down"], [0, 0, 1]), (["0.qkv", "2.qkv"], [0, 1, 0])],
)
def test_layers_of_two_forms_have_code_for_both(changed: list[str], forms: list[int]) -> None:
    matrices = matrices_of(WHOLE, *changed)
    assert layer_forms(matrices, WHOLE)[1] == forms
    text = source(matrices, WHOLE)
    assert f"FORMS[] = {{{', '.join(map(str, forms))}}};" in text
    assert text.count('\n#line 1 "step.cl"') == 2 * 4 + 1
    assert text.count("if (FORMS[layer] == 0)") == 1
    # The last product of either form asks for what the next layer begins with, where that differs.
    differ = changed[0].endswith("qkv")
    first = f"ASK(nth + 1, 0, {CONFIG.q_dim + 2 * CONFIG.kv_dim}, {64 // 4}, CALL_F32)"
    assert text.count(f"if (FORMS[layer + 1] == 0) {{{first}}}") == 2 * differ
    assert text.count("if (layer + 1 < n_layers)") == 2


def test_layers_of_many_forms_make_all_of_them_a_table() -> None:
    matrices = matrices_of(WHOLE, "0.qkv", "2.ffn_down")
    assert can_persist(matrices, WHOLE, 1, ROOM)
    text = source(matrices, WHOLE)
    assert text.count('#line 1 "step.cl"') == 1
    assert "#define STEP_ROWS WORD_AT(nth, PLACE_ROWS)" in text
    assert "if (kind == 0) CALL(f32); else CALL(f16)\n" in text
    kinds = places(matrices, WHOLE)[:-1, 5].tolist()  # but for the embedding, which is no product
    assert (len(kinds), kinds.count(0)) == (3 * 4 + 1, 2)


@pytest.mark.parametrize(
    ("kind", "memory", "fits"),
    [
        (TensorType.F16, LocalMemory(segment_floats=64, segment_blocks=0), True),
        (TensorType.F16, LocalMemory(segment_floats=32, segment_blocks=8), False),
        (TensorType.Q8_0, LocalMemory(segment_floats=0, segment_blocks=2), True),
        (TensorType.Q8_0, LocalMemory(segment_floats=256, segment_blocks=1), False),
    ],
)
def test_pairs_need_their_whole_row_in_local_memory(
    kind: TensorType, memory: LocalMemory, fits: bool
) -> None:
    """SwiGLU of the sums of a segment would not be that of the sums of the row."""
    matrices = matrices_of(WHOLE, kind=kind)
    assert gives_pairs(matrices["0.gate_up"], memory) is fits
    assert can_persist(matrices, WHOLE, 1, memory) is fits


def test_gates_and_ups_of_two_types_give_no_pairs() -> None:
    matrices = matrices_of(WHOLE)
    matrices["1.gate_up"] *= 2
    assert not gives_pairs(matrices["1.gate_up"], ROOM)
    assert not can_persist(matrices, WHOLE, 1, ROOM)


@pytest.mark.parametrize("changed", [[], ["0.qkv"], ["0.qkv", "2.ffn_down"]])
def test_sizes_are_known_where_layers_are_of_few_forms(changed: list[str]) -> None:
    copies = can_copy(matrices_of(WHOLE, *changed), WHOLE)
    assert copies is (len(changed) < 2)
    tuning = Tuning(groups=7, loads=8, copies=True)
    words = persistent_defines(tuning, [TensorType.F16], copies=copies, stamped=True)
    known = {"SIZES_KNOWN": 1, "WORKED_OUT_ANEW": 1}
    assert words == {"GROUPS": 7, "EARLY": 1} | (known if copies else {})


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_table_in_place_of_copies_has_no_stamps(
    wanted: bool, copies: bool, allowed: bool
) -> None:
    tuning = Tuning(groups=24, loads=4, copies=wanted, stamped=True)
    words = persistent_defines(tuning, [TensorType.Q4_0], copies=copies, stamped=allowed)
    assert ("STAMPED" in words) is (allowed and copies == wanted)
    assert ("SIZES_KNOWN" in words, "WORKED_OUT_ANEW" in words) == (copies, False)
    assert words["EARLY"] == 4


@pytest.mark.parametrize(
    ("groups", "shape", "can"),
    [
        (64, {}, True),
        (65, {}, False),  # attention's output has 64 rows
        (8, {"ffn_dim": 80}, False),  # nobody writes the columns to which a row is padded
        (8, {"head_dim": 12}, False),
    ],
)
def test_stamps_where_every_group_writes_of_every_phase(
    groups: int, shape: dict[str, Any], can: bool
) -> None:
    config = dataclasses.replace(CONFIG, **shape)
    assert can_stamp(matrices_of(WHOLE, config=config), WHOLE, config, groups) is can


def test_a_table_where_copies_are_not_wanted() -> None:
    assert source(matrices_of(WHOLE), WHOLE, copies=False).count('#line 1 "step.cl"') == 1
    assert n_barriers(WHOLE) == 1 + 5 * 3
