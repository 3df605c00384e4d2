"""Train teachers on the stories, then a small student on what the teachers think of them.

``python -m training.train CORPUS OUT`` reads ``corpus.npz`` and writes the student as a
checkpoint in Meta's format (``consolidated.00.pth``, ``params.json``) and ``log.jsonl``.

Six megabytes of text are too few for one model to learn from directly: it starts to know them
by heart before it has seen what it needs.  So several larger models are trained first, with
strong regularisation and different seeds; their mean predicts better than each of them.  The
student learns that mean, on the stories and on new ones that the teachers wrote.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products

import torch
from torch.nn import functional

from training.fitting import (
    Corpus,
    Log,
    Settings,
    fit,
    held_out_score,
    make_reproducible,
    next_token_loss,
    windows,
)
from training.lessons import Lessons, cut, write_streams
from training.model import Shape, Transformer

if TYPE_CHECKING:
    from torch import Tensor

    from training.fitting import Batches, Loss

VOCAB_SIZE = 2048
STUDENT = Shape(VOCAB_SIZE, dim=256, n_layers=8, n_heads=8, n_kv_heads=4, ffn_dim=544)
TEACHER = Shape(VOCAB_SIZE, dim=384, n_layers=8, n_heads=6, n_kv_heads=2, ffn_dim=1024)
STUDENT_SEED = 100


def main() -> None:
    """Run both stages."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    corpus = Corpus(arguments.corpus, device)
    log_path = arguments.out / "log.jsonl"
    log_path.unlink(missing_ok=True)
    teachers = [
        train_teacher(corpus, _settings(arguments, "teacher", seed), arguments, log_path)
        for seed in range(1, arguments.teachers + 1)
    ]
    if teachers:
        log = Log(log_path, "teachers")
        log.write(held_out=round(held_out_score(teachers, corpus), 4), models=len(teachers))
    if arguments.student_steps:
        settings = _settings(arguments, "student", STUDENT_SEED)
        train_student(corpus, teachers, settings, arguments, log_path)


def train_teacher(
    corpus: Corpus, settings: Settings, arguments: argparse.Namespace, log_path: Path
) -> Transformer:
    """Train a large model on the stories themselves."""
    make_reproducible(settings.seed)
    shape = replace(TEACHER, **json.loads(arguments.teacher_shape))
    log = Log(log_path, f"teacher {settings.seed}")
    log.settings(settings, shape=shape.__dict__)
    model = Transformer(shape, settings.dropout).to(corpus.train.device)
    batches = windows(corpus.train, shape.context, settings.batch, settings.seed)
    return fit(model, batches, _direct_loss(arguments), corpus, settings, log)


def train_student(
    corpus: Corpus,
    teachers: list[Transformer],
    settings: Settings,
    arguments: argparse.Namespace,
    log_path: Path,
) -> Transformer:
    """Train the small model on the teachers' predictions, or on the stories without teachers."""
    make_reproducible(settings.seed)
    shape = replace(STUDENT, **json.loads(arguments.student_shape))
    log = Log(log_path, "student")
    log.settings(settings, shape=shape.__dict__)
    model = Transformer(shape, settings.dropout).to(corpus.train.device)
    keep = partial(save, folder=arguments.out)
    if not teachers:
        batches = windows(corpus.train, shape.context, settings.batch, settings.seed)
        return fit(model, batches, _direct_loss(arguments), corpus, settings, log, keep)
    lessons = make_lessons(corpus, teachers, arguments, log)
    batches = pieces(len(lessons), settings)
    compare = torch.compile(soft_loss) if arguments.compile else soft_loss

    def loss(model: Transformer, chosen: Tensor) -> Tensor:
        return compare(model, *lessons.look_up(chosen.to(corpus.train.device)))

    return fit(model, batches, loss, corpus, settings, log, keep)


def make_lessons(
    corpus: Corpus, teachers: list[Transformer], arguments: argparse.Namespace, log: Log
) -> Lessons:
    """Let the teachers write, and have them think about that and about the stories."""
    each = arguments.streams // len(teachers)
    new = [
        write_streams(teacher, each, seed).to(torch.int32) for seed, teacher in enumerate(teachers)
    ]
    log.write(written=each * len(teachers))
    texts = torch.cat((cut(corpus.train, teachers[0].shape.context), *new))
    lessons = Lessons(texts, teachers, compiled=arguments.compile)
    log.write(lessons=len(lessons))
    return lessons


def pieces(count: int, settings: Settings) -> Batches:
    """Return a function that draws numbers of pieces, every piece once before any twice."""
    generator = torch.Generator().manual_seed(settings.seed)
    per_pass = count // settings.batch
    order = torch.empty(0, dtype=torch.int64)

    def draw(step: int) -> Tensor:
        nonlocal order
        if step % per_pass == 0:
            order = torch.randperm(count, generator=generator)
        start = step % per_pass * settings.batch
        return order[start : start + settings.batch]

    return draw


def soft_loss(model: Transformer, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean cross-entropy against distributions ``(batch, length, vocab)``: nats."""
    logits = model(inputs).float()
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1))


def _direct_loss(arguments: argparse.Namespace) -> Loss:
    return torch.compile(next_token_loss) if arguments.compile else next_token_loss


def save(model: Transformer, folder: Path) -> None:
    """Write a checkpoint as Meta does: parameters under Meta's names, sizes beside them.

    Half precision: it is finer than the eight bits in which the weights end up.
    """
    shape = model.shape
    weights = {name: weight.half().cpu() for name, weight in model.state_dict().items()}
    torch.save(weights, folder / "consolidated.00.pth")
    params = {
        "dim": shape.dim,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads,
        "vocab_size": shape.vocab_size,
        "norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "max_seq_len": shape.context,
    }
    (folder / "params.json").write_text(json.dumps(params, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    """Read the command line: a flag for every setting of both kinds of run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teachers", type=int, default=8)
    parser.add_argument("--streams", type=int, default=16384, help="what the teachers write")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    defaults = {
        "teacher": Settings(steps=900, rate=2.5e-3, decay=2.5, dropout=0.1),
        "student": Settings(steps=4500, rate=3e-3, decay=0.3, dropout=0.0, score_every=250),
    }
    for kind, settings in defaults.items():
        parser.add_argument(f"--{kind}-shape", default="{}", help="JSON: sizes to change")
        for field in fields(Settings):
            if field.name != "seed":
                value = getattr(settings, field.name)
                parser.add_argument(f"--{kind}-{field.name}", type=type(value), default=value)
    return parser.parse_args()


def _settings(arguments: argparse.Namespace, kind: str, seed: int) -> Settings:
    names = [field.name for field in fields(Settings) if field.name != "seed"]
    return Settings(seed=seed, **{n: getattr(arguments, f"{kind}_{n}") for n in names})


if __name__ == "__main__":
    main()
