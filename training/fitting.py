"""One training run: batches in, a model out whose weights are averaged and chosen when held out.

The averaged weights (an exponential moving average) are scored on stories that are held out of
training; the ones with the lowest loss are the result, so a run that starts to learn its
stories by heart is stopped in effect where it was best.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from training.model import Transformer

    Loss = Callable[[Transformer, Tensor], Tensor]
    Predict = Callable[[Transformer, Tensor], Tensor]
    Batches = Callable[[int], Tensor]
    Keep = Callable[[Transformer], None]

EOS = 2
_LN2 = math.log(2)


@dataclass(frozen=True)
class Settings:
    """What is set for one run."""

    seed: int = 1
    steps: int = 1500
    stop: int = 0
    """The step after which to stop, where that is before the last one; 0 goes to the end."""
    batch: int = 64
    """Windows of a whole context a step."""
    rate: float = 2e-3
    """The highest learning rate: reached after ``warmup`` steps, then a cosine down to 0."""
    warmup: int = 100
    decay: float = 0.5
    """Weight decay, of matrices alone."""
    dropout: float = 0.1
    average: float = 0.997
    """Momentum of the averaged weights."""
    score_every: int = 100


class Corpus:
    """The token streams of ``training.prepare`` on the device."""

    def __init__(self, path: Path, device: torch.device) -> None:
        arrays = np.load(path)
        self.train = torch.from_numpy(arrays["train"].astype(np.int32)).to(device)
        self.held = torch.from_numpy(_optional(arrays, "held").astype(np.int32)).to(device)
        self.held_bytes = int(_optional(arrays, "held_bytes").sum())


def _optional(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return arrays[name] if name in arrays else np.zeros(0, np.uint16)


def windows(stream: Tensor, length: int, batch: int, seed: int) -> Batches:
    """Return a function that draws ``(batch, length + 1)`` tokens from anywhere in a stream."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    offsets = torch.arange(length + 1, device=stream.device)

    def draw(_step: int) -> Tensor:
        starts = torch.randint(len(stream) - length, (batch, 1), generator=generator)
        return stream[starts.to(stream.device) + offsets].long()

    return draw


def next_token_loss(model: Transformer, tokens: Tensor) -> Tensor:
    """Return the mean loss of every token but the first: nats."""
    logits = model(tokens[:, :-1]).float()
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def held_out_score(models: list[Transformer], corpus: Corpus) -> float:
    """Return bits per byte of the held-out stories, of the mean of the models' predictions.

    The stream is cut into contexts, every token of which is scored but EOS, which is no text.
    """
    length = models[0].shape.context
    cut = (len(corpus.held) - 1) // length * length
    inputs = corpus.held[:cut].view(-1, length).long()
    targets = corpus.held[1 : cut + 1].view(-1, length).long()
    nats = torch.zeros((), device=inputs.device, dtype=torch.float64)
    for part, wanted in zip(inputs.split(32), targets.split(32), strict=True):
        right = mean_probabilities(models, part).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        nats -= right.log().where(wanted > EOS, 0.0).sum(dtype=torch.float64)
    return nats.item() / _LN2 / (corpus.held_bytes * cut / len(corpus.held))


@torch.no_grad()
def mean_probabilities(
    models: list[Transformer], tokens: Tensor, *, compiled: bool = False
) -> Tensor:
    """Return the mean of the models' next-token distributions: ``(batch, length, vocab)``."""
    predict = _compiled_probabilities() if compiled else probabilities
    total = torch.zeros((), device=tokens.device)
    for model in models:
        with autocast(tokens.device):
            total = total + predict(model, tokens)
    return total / len(models)


def probabilities(model: Transformer, tokens: Tensor) -> Tensor:
    """Return a model's next-token distribution after each token."""
    return model(tokens).float().softmax(-1)


@cache
def _compiled_probabilities() -> Predict:
    return torch.compile(probabilities)


def fit(
    model: Transformer,
    batches: Batches,
    loss: Loss,
    corpus: Corpus,
    settings: Settings,
    log: Log,
    keep: Keep | None = None,
    *,
    to_the_end: bool = False,
) -> Transformer:
    """Train a model and return the averaged copy that scored best; ``keep`` gets each best.

    ``to_the_end`` takes the last one instead: what is learned then is not what is held out.
    """
    optimizer = _optimizer(model, settings)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    best, best_score = copy.deepcopy(average), math.inf
    recent = torch.zeros((), device=corpus.held.device)
    for step in range(settings.stop or settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        with autocast(corpus.held.device):
            value = loss(model, batches(step))
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _follow(average, model, min(settings.average, (step + 1) / (step + 10)))
        recent = recent.lerp(value.detach(), 1 / (1 + step % settings.score_every))
        if (step + 1) % settings.score_every == 0 or step + 1 == settings.steps:
            score = held_out_score([average], corpus)
            log.write(step=step + 1, loss=round(recent.item(), 4), held_out=round(score, 4))
            if score < best_score or to_the_end:
                best, best_score = copy.deepcopy(average), score
                if keep is not None:
                    keep(best)
    return best


def learning_rate(step: int, settings: Settings) -> float:
    """Return the rate of a step: a line up, half a cosine down to zero."""
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.rate * 0.5 * (1 + math.cos(math.pi * done))


class Log:
    """Lines of JSON about one run, in a file and on the terminal."""

    def __init__(self, path: Path, run: str) -> None:
        self._path, self._run = path, run
        self._start = time.monotonic()

    def write(self, **values: object) -> None:
        """Write what happened."""
        line = json.dumps({"run": self._run, **values})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(f"{time.monotonic() - self._start:6.1f} s {line}", flush=True)

    def settings(self, settings: Settings, **more: object) -> None:
        """Write what the run was started with."""
        self.write(settings=asdict(settings) | more)


def autocast(device: torch.device) -> torch.autocast:
    """Compute matrix products in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16)


def make_reproducible(seed: int) -> None:
    """Seed everything and choose deterministic kernels where there are some."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, proves nothing here
    torch.backends.cuda.matmul.allow_tf32 = True


def _optimizer(model: Transformer, settings: Settings) -> torch.optim.AdamW:
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": settings.decay},
        {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
    ]
    fused = weights[0].is_cuda
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95), fused=fused)


@torch.no_grad()
def _follow(average: Transformer, model: Transformer, momentum: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - momentum)
