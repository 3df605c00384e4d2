r"""Measure llama.cpp and pyrllama on the same files, in turn, and keep the figures.

    python bench/rivals.py --llama-bench build/bin/llama-bench --threads 2 \
        --results bench/results/rivals.jsonl 1b-q4_0.gguf 1b-q8_0.gguf

Machines are shared and timings noisy: the programs take turns, ``--rounds`` times each, and
only medians and their ratio are kept.  Every line of the results is one file's comparison,
with the versions, the machine and the bandwidth that was measured in the same run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_json(command: list[str]) -> Any:
    """Run a command and return the JSON that it prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure_llama_cpp(program: Path, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return llama.cpp's prefill and decode tokens per second for one turn."""
    command = [str(program), "-m", str(model), "-t", str(options.threads), "-o", "json"]
    command += ["-p", str(options.prompt_tokens), "-n", str(options.generate_tokens)]
    command += ["-r", str(options.repetitions)]
    prefill, decode = run_json(command)
    return {
        "prefill": statistics.median(prefill["samples_ts"]),
        "decode": statistics.median(decode["samples_ts"]),
        "version": f"{prefill['build_commit']} ({prefill['build_number']})",
    }


def measure_pyrllama(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return our prefill and decode tokens per second for one turn, and the bandwidth."""
    command = [sys.executable, "-m", "pyrllama", "bench", "--model-path", str(model)]
    command += ["--threads", str(options.threads), "--json"]
    command += ["--repetitions", str(options.repetitions)]
    command += ["--prompt-tokens", str(options.prompt_tokens)]
    command += ["--generate-tokens", str(options.generate_tokens)]
    report = run_json(command)
    return {
        "prefill": report["prefill_tokens_per_second"]["median"],
        "decode": report["decode_tokens_per_second"]["median"],
        "bytes_per_token": report["bytes_per_token"],
        "bandwidth": max(report["read_bandwidth_gigabytes_per_second"].values()),
        "share": report["share_of_bandwidth"],
        "peak_memory_bytes": report["peak_memory_bytes"],
        "machine": report["machine"],
        "versions": report["versions"],
    }


def median_of(turns: list[dict[str, Any]], key: str) -> float:
    """Return the median of a figure over all turns."""
    median: float = statistics.median(turn[key] for turn in turns)
    return median


def compare(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let the programs take turns on a file and sum up."""
    theirs, ours = [], []
    for _ in range(options.rounds):
        theirs.append(measure_llama_cpp(options.llama_bench, model, options))
        ours.append(measure_pyrllama(model, options))
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "model": model.stem,
        "threads": options.threads,
        "prompt_tokens": options.prompt_tokens,
        "generate_tokens": options.generate_tokens,
        "rounds": options.rounds,
        "repetitions": options.repetitions,
        "llama_cpp": {
            "prefill": median_of(theirs, "prefill"),
            "decode": median_of(theirs, "decode"),
            "version": theirs[0]["version"],
        },
        "pyrllama": {
            "prefill": median_of(ours, "prefill"),
            "decode": median_of(ours, "decode"),
            "bandwidth": median_of(ours, "bandwidth"),
            "share": median_of(ours, "share"),
            "bytes_per_token": ours[0]["bytes_per_token"],
            "peak_memory_bytes": median_of(ours, "peak_memory_bytes"),
            "versions": ours[0]["versions"],
        },
        "machine": ours[0]["machine"],
    }


def main() -> None:
    """Compare on every file and append the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--generate-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program")
    parser.add_argument("--repetitions", type=int, default=3, help="measurements in a turn")
    parser.add_argument("--results", type=Path, default=Path("bench/results/rivals.jsonl"))
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        line = json.dumps(compare(model, options))
        print(line, flush=True)
        with options.results.open("a", encoding="utf-8") as results:
            results.write(line + "\n")


if __name__ == "__main__":
    main()
