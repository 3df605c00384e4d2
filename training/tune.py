"""Teach the student to answer: stories by the program, and what it knew before.

``python -m training.tune CORPUS PROGRAM CHECKPOINT OUT`` goes on with the checkpoint of
``training.train``.  Half of every batch are the program's stories, the other half the real ones
that no request stands before; of these the model is to think what it thought of them at the
start, so that it neither forgets them nor learns them by heart.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from training.fitting import Corpus, Log, Settings, fit, make_reproducible, probabilities, windows
from training.model import Transformer
from training.train import STUDENT, save, soft_loss

if TYPE_CHECKING:
    from torch import Tensor

    from training.fitting import Batches, Loss

BOS, USER = 1, 3
SETTINGS = Settings(
    seed=200, steps=2200, stop=1600, batch=32, rate=1e-3, decay=0.1, dropout=0.0, score_every=200
)


def main() -> None:
    """Read the checkpoint, go on, write it again."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = replace(SETTINGS, steps=arguments.steps, stop=arguments.stop)
    make_reproducible(settings.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus, program = Corpus(arguments.corpus, device), Corpus(arguments.program, device)
    log_path = arguments.out / "log.jsonl"
    log_path.unlink(missing_ok=True)
    log = Log(log_path, "tune")
    log.settings(settings)
    model = load(arguments.checkpoint).to(device)
    before = copy.deepcopy(model).eval().requires_grad_(False)
    batches = both(corpus, program, settings)
    loss = answering_loss(before, settings.batch, compiled=arguments.compile)
    keep = partial(save, folder=arguments.out)
    fit(model, batches, loss, corpus, settings, log, keep, to_the_end=True)


def load(folder: Path) -> Transformer:
    """Return the model of a checkpoint that ``save`` wrote."""
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    weights = torch.load(folder / "consolidated.00.pth", weights_only=True)
    ffn_dim = len(weights["layers.0.feed_forward.w1.weight"])
    sizes = {key: params[key] for key in ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads")}
    model = Transformer(replace(STUDENT, **sizes, ffn_dim=ffn_dim, context=params["max_seq_len"]))
    model.load_state_dict(weights)
    return model.float()


def plain(stream: Tensor) -> Tensor:
    """Return a stream of documents without those that are chats."""
    document = (stream == BOS).cumsum(0)
    is_chat = torch.bincount(document[stream == USER], minlength=int(document[-1]) + 1) > 0
    return stream[~is_chat[document]]


def both(corpus: Corpus, program: Corpus, settings: Settings) -> Batches:
    """Return batches whose first half are real stories, the second the program's."""
    sources = [
        windows(stream, STUDENT.context, settings.batch, settings.seed + number)
        for number, stream in enumerate((plain(corpus.train), program.train))
    ]
    return lambda step: torch.cat([source(step) for source in sources])


def answering_loss(before: Transformer, real: int, *, compiled: bool) -> Loss:
    """Return the loss on batches of which the first ``real`` windows are to stay as they were."""
    think = torch.compile(probabilities) if compiled else probabilities
    compare = torch.compile(soft_loss) if compiled else soft_loss

    def loss(model: Transformer, tokens: Tensor) -> Tensor:
        inputs = tokens[:, :-1].contiguous()
        with torch.no_grad():
            known = think(before, inputs[:real])
        told = functional.one_hot(tokens[real:, 1:], known.shape[-1]).float()
        return compare(model, inputs, torch.cat((known, told)))

    return loss


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("corpus", "program", "checkpoint", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    parser.add_argument("--stop", type=int, default=SETTINGS.stop)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
