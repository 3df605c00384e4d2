"""The greatest logits of a row, found on the device; see ``kernels/choice.cl``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.core import TopLogits
from pyrllama.opencl.launches import BatchLaunch, Rows
from pyrllama.opencl.tuning import top_part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pyrllama.model_config import ModelConfig
    from pyrllama.opencl.program import Program
    from pyrllama.opencl.stage import Stage
    from pyrllama.opencl.tuning import Tuning

TOP_ROOM = 512
"""Logits that the result of a row has room for."""
COUNT, GAVE_UP, MASS, FIRST, LOGITS = 0, 1, 2, 3, 4
"""Words of a result: where they stand in it."""
TOP_WORDS = LOGITS + 2 * TOP_ROOM
MOST_ROWS = 64
"""Rows for whose choice there is room in a step."""
PARTS_FOR_ONE = 2
"""Parts of a row for each logit that is wanted: with fewer, many more would reach the bound."""


def n_parts(config: ModelConfig, tuning: Tuning) -> int:
    """Return into how many parts a row of logits is cut."""
    n_runs = tuning.groups
    part = top_part(config.vocab_size)
    return (config.vocab_size // n_runs + part) // part * n_runs


def can_choose(config: ModelConfig, tuning: Tuning, k: int, n_rows: int) -> bool:
    """Whether the device finds ``k`` logits of so many rows; of few logits the host does."""
    return 1 <= n_rows <= MOST_ROWS and k * PARTS_FOR_ONE <= n_parts(config, tuning)


def choice_bytes(config: ModelConfig, tuning: Tuning) -> dict[str, int]:
    """Return the bytes of the buffers that a choice needs, by their names."""
    words = {"greatest": n_parts(config, tuning), "masses": 2 * tuning.groups, "top": TOP_WORDS}
    return {name: 4 * MOST_ROWS * n for name, n in words.items()}


def choice_launches(stage: Stage, program: Program) -> Iterator[BatchLaunch]:
    """Yield the launches behind those that leave rows of logits."""
    tuning, buffer = stage.tuning, stage.buffer
    n_runs = tuning.groups
    row = buffer("logits"), np.int32(stage.config.vocab_size), np.int32(n_runs)
    summed = buffer("greatest"), buffer("masses")
    sum_up: tuple[Any, ...] = "sum_up_logits", n_runs, tuning.group, *row, *summed
    choose: tuple[Any, ...] = "choose_logits", 1, tuning.group, *row, *summed
    for launch in (sum_up, (*choose, buffer("batch"), buffer("top"))):
        yield BatchLaunch(program.launch(*launch), rows=Rows.OUTPUTS)


def top_of(words: NDArray[np.uint32], k: int) -> TopLogits | None:
    """Return the ``k`` greatest logits in a row's result, sorted, which is ``(TOP_WORDS,)``.

    None where it does not have them: too many are alike, too few are finite, or some are NaN.
    """
    count, mass = int(words[COUNT]), float(words[MASS : MASS + 1].view(np.float32)[0])
    if not k <= count <= TOP_ROOM or not math.isfinite(mass):
        return None
    pairs = words[LOGITS : LOGITS + 2 * count].reshape(count, 2)
    logits, ids = pairs[:, 0].copy().view(np.float32), pairs[:, 1].astype(np.int64)
    first = np.lexsort((ids, -logits))[:k]
    return TopLogits(logits[first], ids[first], mass)
