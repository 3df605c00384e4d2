"""Texts with common beginnings on an OpenCL device: those that each gives alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from support.opencl_models import opencl_model
from support.tiny_models import random_weights, tiny_config

from pyrllama.core import Request, Sampling
from pyrllama.engine import Engine
from pyrllama.lookup import PromptLookup
from pyrllama.prefix import PrefixCache
from pyrllama.speculation import Hits, Speculation
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyrllama.opencl.device import Device
    from pyrllama.opencl.model import OpenClModel

CONFIG = tiny_config(vocab_size=101)
WEIGHTS = random_weights(CONFIG)
PROMPT = np.random.default_rng(7).integers(0, 101, 30).tolist() * 2


class Eager(Speculation):
    """Drafts whatever the text repeats."""

    def _worthwhile(self, kind: int, room: int) -> int:
        self._hits.setdefault(kind, Hits(kind))
        return min(room, 7)


def generate(engine: Engine, prompt: Sequence[int]) -> tuple[tuple[int, ...], int | None]:
    generation = engine.submit(Request(tuple(prompt), Sampling(temperature=0), 20))
    while generation.finish is None:
        engine.step()
    return generation.tokens, generation.reused


def alone(model: OpenClModel, prompt: Sequence[int]) -> tuple[int, ...]:
    return generate(Engine(model, 96, prefixes=PrefixCache(model, reuse=False)), prompt)[0]


def test_reused_and_drafted_text_is_the_text(device: Device) -> None:
    with opencl_model(device, CONFIG, WEIGHTS, TensorType.F32, kv_type=TensorType.F32) as model:
        drafts = Eager(PromptLookup())
        for _ in range(2):
            drafts.record(1.0, 0, 1)
        for speculation in (None, drafts):
            engine = Engine(model, 96, speculation=speculation)
            assert generate(engine, PROMPT) == (alone(model, PROMPT), 0)
            engine = Engine(model, 96, speculation=speculation)
            told, _ = generate(engine, PROMPT[:50])
            longer = [*PROMPT[:50], *told[:-1], 3, 3]
            text, reused = generate(engine, longer)
            assert text == alone(model, longer)
            assert reused == len(longer) - 2
