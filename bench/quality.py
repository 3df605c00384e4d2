"""What every quantisation costs: bits, perplexity and divergence, and how fast its type runs.

A model is written as F32 and in every mixture, and each file is compared with the first over a
text.  With ``--llama-cpp``, the folder of llama.cpp's programs, its own measure of the same file
stands beside ours, and what its ``llama-quantize`` makes of the same weights.  ``--speed`` measures
the types on random weights of a shape instead.

    python bench/quality.py model.gguf valid.txt results.jsonl --llama-cpp llama.cpp/build/bin
    python bench/quality.py --speed 1b results.jsonl

Results are appended as lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from programs import run

from pyrllama import load
from pyrllama.checkpoints import open_checkpoint
from pyrllama.checkpoints.random import SHAPES, RandomCheckpoint
from pyrllama.cli.bench_work import Bench, Workload
from pyrllama.cpu import read_bandwidth
from pyrllama.cpu.model import load_model
from pyrllama.mixtures import Mixture
from pyrllama.quantize import quantize_checkpoint
from pyrllama.quants import WRITABLE, dequantize
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pyrllama.divergence import Divergence
    from pyrllama.llama import Llama

Row = dict[str, Any]
PROMPT_TOKENS, GENERATED_TOKENS, REPETITIONS = 128, 24, 3
MAX_SEQ_LEN = 512
SO_FAR = re.compile(r"\[(\d+)\]([\d.]+),")
"""How ``llama-perplexity`` prints the perplexity after each chunk."""
TRIES = 3
"""On a busy machine it may end before its last words are written."""
RIVAL_LACKS = {Mixture.MXFP4}
"""``llama-quantize`` writes it for mixtures of experts alone."""


# --- quality ----------------------------------------------------------------------------------


def measure(
    source: Path, text: Path, mixtures: list[Mixture], options: argparse.Namespace
) -> Iterator[Row]:
    """Yield a row for each mixture of a model."""
    words = text.read_text("utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base_path = folder / "base.gguf"
        _write(source, base_path, Mixture.F32, options.threads)
        base = _load(base_path, options)
        for mixture in mixtures:
            path = folder / "ours.gguf"
            bits = _write(base_path, path, mixture, options.threads)
            compared = compare(path, base, words, options)
            row = {
                "model": options.name or source.stem,
                "mixture": mixture.name,
                "context": options.context,
                "chunks": options.chunks,
                "tokens": len(compared.kl),
                "bits": bits,
                "bytes": path.stat().st_size,
                "error": relative_error(base_path, path),
                **figures(compared),
            }
            if options.llama_cpp:
                row["rival_perplexity"] = rival_perplexity(path, text, options)
                row |= against_theirs(base_path, path, mixture, compared, words, base, options)
            yield row
        base.close()


def _write(source: Path, path: Path, mixture: Mixture, threads: int) -> float:
    """Write a model in a mixture and return the bits that a number takes."""
    with open_checkpoint(source) as checkpoint:
        done = quantize_checkpoint(checkpoint, source, path, mixture, threads=threads)
    return done.bits_per_weight


def _load(path: Path, options: argparse.Namespace) -> Llama:
    return load(path, threads=options.threads, max_seq_len=options.context)


def compare(path: Path, base: Llama, text: str, options: argparse.Namespace) -> Divergence:
    """Return how far a file's predictions are from the base's."""
    with _load(path, options) as model:
        return model.divergence(text, base, context=options.context, chunks=options.chunks)


def figures(compared: Divergence) -> Row:
    """Return the figures of a comparison that tables show."""
    return {
        "perplexity": compared.model.perplexity,
        "ratio": compared.ratio,
        "ratio_error": compared.ratio_standard_error,
        "kl": compared.mean,
        "kl_99": compared.quantile(0.99),
        "same_top": compared.same_top_share,
    }


def relative_error(base: Path, path: Path) -> float:
    """Return the root of the matrices' squared errors over that of their squares."""
    errors = squares = 0.0
    with open_checkpoint(base) as first, open_checkpoint(path) as second:
        for name, info in first.tensors.items():
            if len(info.shape) == 2 and name in second.tensors:
                x, y = (
                    dequantize(tensor.info.type, tensor.data, info.shape[1]).astype(np.float64)
                    for tensor in (first.read(name), second.read(name))
                )
                errors += float(((x - y) ** 2).sum())
                squares += float((x**2).sum())
    return float(np.sqrt(errors / squares))


def against_theirs(
    base_path: Path, ours: Path, mixture: Mixture, compared: Divergence, text: str, base: Llama,
    options: argparse.Namespace,
) -> Row:  # fmt: skip
    """Return what llama.cpp's own file of the mixture loses, and our perplexity over its."""
    if mixture in RIVAL_LACKS:
        return {}
    theirs = ours.with_name("theirs.gguf")
    program = str(options.llama_cpp / "llama-quantize")
    run([program, str(base_path), str(theirs), mixture.name, str(options.threads)])
    their_divergence = compare(theirs, base, text, options)
    row = {f"theirs_{key}": value for key, value in figures(their_divergence).items()}
    row["theirs_error"] = relative_error(base_path, theirs)
    row["to_theirs"], row["to_theirs_error"] = paired_ratio(
        compared.differences - their_divergence.differences, options.chunks
    )
    return row


def paired_ratio(differences: NDArray[np.float64], chunks: int) -> tuple[float, float]:
    """Return the ratio of two perplexities and its standard error, from losses token by token.

    The error is that of the chunks' means: the tokens of a text have much in common.
    """
    means = differences.reshape(chunks, -1).mean(axis=1)
    ratio = float(np.exp(means.mean()))
    return ratio, ratio * float(means.std(ddof=1)) / math.sqrt(chunks)


def rival_perplexity(path: Path, text: Path, options: argparse.Namespace) -> float:
    """Return what ``llama-perplexity`` says of a file and the same chunks of the text."""
    settings = {
        "-m": path, "-f": text, "-c": options.context, "--chunks": options.chunks,
        "-t": 1, "-b": options.context,
    }  # fmt: skip
    words = [str(word) for pair in settings.items() for word in pair]
    for _ in range(TRIES):
        out = run([str(options.llama_cpp / "llama-perplexity"), *words]).out
        found = {int(chunk): float(value) for chunk, value in SO_FAR.findall(out)}
        if options.chunks in found:
            return found[options.chunks]
    raise SystemExit(f"llama-perplexity did not tell of chunk {options.chunks} of {path}")


# --- speed ------------------------------------------------------------------------------------


def measure_speed(shape: str, types: list[TensorType], threads: int) -> Iterator[Row]:
    """Yield a row for each type, on random weights of a shape."""
    work = Workload(PROMPT_TOKENS, GENERATED_TOKENS, PROMPT_TOKENS, 1, REPETITIONS)
    for type_ in types:
        checkpoint = RandomCheckpoint(SHAPES[shape], type_)
        bandwidth = read_bandwidth(threads)
        model = load_model(checkpoint, max_seq_len=MAX_SEQ_LEN, threads=threads)
        times = Bench(model, work).run()
        prefill = statistics.median(PROMPT_TOKENS / time.prefill for time in times)
        decode = statistics.median(GENERATED_TOKENS / time.decode for time in times)
        bandwidth = max(bandwidth, read_bandwidth(threads))
        yield {
            "shape": shape,
            "type": type_.name,
            "threads": threads,
            "prefill": prefill,
            "decode": decode,
            "share": decode * model.decode_bytes / bandwidth,
        }
        model.close()


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="[MODEL TEXT] RESULTS")
    parser.add_argument("--name", help="the model's in the table")
    parser.add_argument("--types", nargs="+", help="mixtures, or types with --speed")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--speed", choices=list(SHAPES))
    options = parser.parse_args()
    if len(options.paths) != (1 if options.speed else 3):
        parser.error("give MODEL TEXT RESULTS, or RESULTS alone with --speed")
    if options.speed:
        types = [TensorType[name] for name in options.types or _names(WRITABLE)]
        rows = measure_speed(options.speed, types, options.threads)
    else:
        mixtures = [Mixture[name] for name in options.types or Mixture.__members__]
        rows = measure(options.paths[0], options.paths[1], mixtures, options)
    with options.paths[-1].open("a", encoding="utf-8") as results:
        for row in rows:
            results.write(json.dumps(row) + "\n")
            results.flush()
            print(json.dumps(row))


def _names(types: frozenset[TensorType]) -> list[str]:
    return [type_.name for type_ in sorted(types)]


if __name__ == "__main__":
    main()
