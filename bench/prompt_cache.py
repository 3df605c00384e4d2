"""Time the first token of a long prompt: computed, and found on disk by a second process.

Each run is a process of its own that loads the model, reads the prompt and generates a few
tokens greedily.  The prompt is random token ids, for the time does not depend on the words.

    python bench/prompt_cache.py model.gguf
    python bench/prompt_cache.py model.gguf --prompt 2000 --runs 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SEED = 11
TOKENS = 8


def main() -> int:
    """Run the processes and print what they measured."""
    arguments = parse()
    if arguments.folder:
        print(json.dumps(first_token(arguments)))
        return 0
    cold, warm = [], []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(run(folder))
            warm.append(run(folder))
    for name, runs in (("computed", cold), ("from disk", warm)):
        print(
            f"{name:>10}: first token {median(r['first_token'] for r in runs):7.3f} s, whole "
            f"process {median(r['process'] for r in runs):7.2f} s, "
            f"{runs[-1]['reused']} of {arguments.prompt} tokens reused"
        )
    share = median(w["first_token"] / c["first_token"] for w, c in zip(warm, cold, strict=True))
    same = all(w["text"] == c["text"] for w, c in zip(warm, cold, strict=True))
    print(f"from disk takes {share:.1%} of the time; same text: {same}")
    return 0 if same else 1


def parse() -> argparse.Namespace:
    """Return the arguments; ``--folder`` is what a process of its own gets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of the prompt")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(folder: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured | {"process": time.perf_counter() - started}


def first_token(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load the model, generate, and return the seconds from the request to the first token."""
    from pyrllama.checkpoints import open_checkpoint  # noqa: PLC0415
    from pyrllama.core import Request, Sampling  # noqa: PLC0415
    from pyrllama.engine import Engine  # noqa: PLC0415
    from pyrllama.loading import load_model, parse_kv_type  # noqa: PLC0415
    from pyrllama.prompt_store import DEFAULT_BYTES  # noqa: PLC0415
    from pyrllama.reuse import open_prefixes  # noqa: PLC0415

    length = arguments.prompt + TOKENS
    with open_checkpoint(arguments.model, None) as checkpoint:
        model = load_model(
            checkpoint,
            backend="cpu",
            weight_type=None,
            kv_type=parse_kv_type(arguments.kv_type),
            max_seq_len=length,
            threads=arguments.threads,
            progress=None,
        )
        prefixes = open_prefixes(
            model, checkpoint, None, arguments.folder, DEFAULT_BYTES, None, max_seq_len=length
        )
    engine = Engine(model, length, prefixes=prefixes)
    ids = np.random.default_rng(SEED).integers(model.config.vocab_size, size=arguments.prompt)
    generation = engine.submit(Request(tuple(ids.tolist()), Sampling(temperature=0), TOKENS))
    started = time.perf_counter()
    while not generation.generated:
        engine.step()
    seconds = time.perf_counter() - started
    while generation.finish is None:
        engine.step()
    engine.close()
    return {"first_token": seconds, "text": generation.tokens, "reused": generation.reused}


if __name__ == "__main__":
    sys.exit(main())
