"""What the teachers write, and what they think of every token, written down once.

Only the likeliest tokens of each prediction are kept.  The little that is left is spread as the
tokens occur in the stories, so that a lesson is a whole distribution again.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from training.fitting import mean_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from training.model import Transformer

BOS = 1
KEPT = 128
"""Tokens of a prediction that are kept."""
_AT_ONCE = 64


@torch.no_grad()
def write_streams(model: Transformer, count: int, seed: int) -> Tensor:
    """Return ``(count, context + 1)`` tokens that a model drew one by one after BOS.

    The stream goes on behind the end of a story with the next one, as in training.
    """
    device = model.tok_embeddings.weight.device
    writer = copy.deepcopy(model).to(torch.bfloat16)
    writer.turns = model.turns
    generator = torch.Generator(device=device).manual_seed(seed)
    context = model.shape.context
    tokens = torch.full((count, context + 1), BOS, device=device)
    cache = writer.new_cache(count, torch.bfloat16)
    for position in range(context):
        logits = writer(tokens[:, position : position + 1], cache, position)
        probabilities = logits[:, 0].float().softmax(-1)
        tokens[:, position + 1] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return tokens


def cut(stream: Tensor, context: int) -> Tensor:
    """Return a stream in pieces of ``context + 1`` tokens, each one token into the next."""
    return stream.unfold(0, context + 1, context)


class Lessons:
    """Pieces of text and the teachers' predictions for each of their tokens."""

    def __init__(self, texts: Tensor, teachers: list[Transformer], *, compiled: bool) -> None:
        """Ask the teachers about ``texts``, ``(pieces, context + 1)`` token ids."""
        self._inputs = texts[:, :-1].to(torch.int16)
        vocab_size = teachers[0].shape.vocab_size
        size = (*self._inputs.shape, min(KEPT, vocab_size))
        self._tokens = torch.empty(size, dtype=torch.int16, device=texts.device)
        self._shares = torch.empty(size, dtype=torch.float16, device=texts.device)
        for start in range(0, len(texts) // _AT_ONCE * _AT_ONCE, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            inputs = texts[part, :-1].long().contiguous()
            likeliest = mean_probabilities(teachers, inputs, compiled=compiled).topk(size[-1])
            self._tokens[part] = likeliest.indices.to(torch.int16)
            self._shares[part] = likeliest.values.to(torch.float16)
        counts = torch.bincount(texts.flatten().long(), minlength=vocab_size).float()
        self._frequencies = counts / counts.sum()

    def __len__(self) -> int:
        """Return how many pieces there are predictions for."""
        return len(self._inputs) // _AT_ONCE * _AT_ONCE

    def look_up(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Return token ids ``(n, context)`` and distributions ``(n, context, vocab)``."""
        shares = self._shares[pieces].float()
        rest = (1 - shares.sum(-1, keepdim=True)).clamp_min(0)
        kept = torch.zeros((*shares.shape[:-1], len(self._frequencies)), device=shares.device)
        kept.scatter_(-1, self._tokens[pieces].long(), shares)
        return self._inputs[pieces].long(), kept + rest * self._frequencies
