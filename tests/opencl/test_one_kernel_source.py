"""The source of the one-kernel step: code for each product where layers are alike, else a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.tiny_models import MemoryCheckpoint, random_weights, tiny_config

from pyrllama.opencl.parts import Part, stage_stacks
from pyrllama.opencl.persistent import can_persist, n_barriers, persistent_source, places
from pyrllama.opencl.weights import Matrix
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = tiny_config(dim=64, n_layers=3, vocab_size=96)
WHOLE = Part(range(3), embeds=True, ends=True)


def matrices_of(part: Part, changed: str = "") -> dict[str, list[Matrix]]:
    """Return a part's matrices in F16, and in F32 those of the group that is named."""
    checkpoint = MemoryCheckpoint(CONFIG, random_weights(CONFIG))
    found = {}
    for kind in (TensorType.F16, TensorType.F32):
        for group, stacks in stage_stacks(checkpoint, part, kind).items():
            if kind is TensorType.F16 or group == changed:
                found[group] = [Matrix(stack.extent, None, None, 0, 0) for stack in stacks]
    return found


def source(matrices: Mapping[str, list[Matrix]], part: Part, *, copies: bool = True) -> str:
    return persistent_source(
        matrices, CONFIG, part, n_buffers=1, copies=copies, activation_bytes=512
    )


@pytest.mark.parametrize("ends", [False, True])
def test_layers_that_are_alike_have_code_for_each_product(ends: bool) -> None:
    part = Part(range(3), embeds=True, ends=ends)
    text = source(matrices_of(part), part)
    assert text.count('#line 1 "step.cl"') == 4 + ends
    assert "WORD_AT(nth" not in text.split("persistent_step(")[1]
    rows = [line.split()[2] for line in text.splitlines() if line.startswith("#define STEP_ROWS")]
    qkv = CONFIG.q_dim + 2 * CONFIG.kv_dim
    assert rows == [str(n) for n in (qkv, 64, 2 * CONFIG.ffn_dim, 64, *[96] * ends)]
    # A layer's last product asks for the next one's first, and at the end for the output.
    assert text.count("if (layer + 1 < n_layers)") == 1
    assert text.count(f"ASK(nth + 1, 4, 96, {64 // 8}, CALL_F16)") == ends


@pytest.mark.parametrize("changed", ["0.qkv", "2.ffn_down"])
def test_a_layer_of_another_type_makes_all_of_them_a_table(changed: str) -> None:
    matrices = matrices_of(WHOLE, changed)
    assert can_persist(matrices, WHOLE, n_buffers=1)
    text = source(matrices, WHOLE)
    assert text.count('#line 1 "step.cl"') == 1
    assert "#define STEP_ROWS WORD_AT(nth, PLACE_ROWS)" in text
    assert "if (kind == 0) CALL(f32); else CALL(f16)\n" in text
    kinds = places(matrices, WHOLE)[:-1, 5].tolist()  # but for the embedding, which is no product
    assert (len(kinds), kinds.count(0)) == (3 * 4 + 1, 1)


def test_a_table_where_copies_are_not_wanted() -> None:
    assert source(matrices_of(WHOLE), WHOLE, copies=False).count('#line 1 "step.cl"') == 1
    assert n_barriers(WHOLE) == 1 + 5 * 3
