"""Models beside each other, in forked children, interrupted, and dropped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.cpu_models import cpu_model
from support.tiny_models import logits_of, random_weights, tiny_config

from pyrllama.cpu import target
from pyrllama.tensors import TensorType

if TYPE_CHECKING:
    from pyrllama.cpu.model import CpuModel

TESTS = Path(__file__).resolve().parents[1]
DEADLINE = 60.0
TOKENS = range(40)

PREAMBLE = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
import numpy as np
from support.tiny_models import MemoryCheckpoint, logits_of, random_weights, tiny_config
from pyrllama.tensors import TensorType
from pyrllama.cpu import load_model
config = tiny_config()
model = load_model(
    MemoryCheckpoint(config, random_weights(config)), type=TensorType.Q8_0,
    max_seq_len=64, threads=3,
)
"""


def run_python(script: str) -> str:
    """Run a script in a process of its own, which must end well; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREAMBLE + script],
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


FORK = """
expected = logits_of(model, range(40))
child = os.fork()
same = all(np.array_equal(logits_of(model, range(40)), expected) for _ in range(20))
model.close()
if child == 0:
    os._exit(7 if same else 8)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_parent_and_forked_child_compute_the_same_at_the_same_time() -> None:
    assert run_python(FORK) == "True 7\n"


NEVER_CLOSED = """
logits_of(model, range(40))
print("done")
"""


def test_a_process_ends_with_a_model_that_nobody_closed() -> None:
    assert run_python(NEVER_CLOSED) == "done\n"


INTERRUPTED = """
import signal, threading
expected = logits_of(model, range(40))
interrupts = 0
for _ in range(20):
    sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
    try:
        sender.start()
        while True:
            logits_of(model, range(40))
    except KeyboardInterrupt:
        interrupts += 1
    sender.join()
print(interrupts, np.array_equal(logits_of(model, range(40)), expected))
model.close()
print(sum(thread.name.startswith("rllama-") for thread in threading.enumerate()))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="signals differ")
def test_an_interrupted_model_goes_on_and_closes() -> None:
    assert run_python(INTERRUPTED) == "20 True\n0\n"


def test_two_models_from_two_threads_compute_what_each_does_alone() -> None:
    config, isa = tiny_config(), target.chosen()
    weights = [random_weights(config, seed) for seed in (1, 2)]
    with (
        cpu_model(config, weights[0], isa, TensorType.Q8_0, threads=2) as first,
        cpu_model(config, weights[1], isa, TensorType.Q8_0, threads=3) as second,
    ):
        models = (first, second)
        alone = [logits_of(model, TOKENS).tobytes() for model in models]
        assert alone[0] != alone[1]
        together: dict[int, set[bytes]] = {0: set(), 1: set()}

        def work(number: int, model: CpuModel) -> None:
            for _ in range(20):
                together[number].add(logits_of(model, TOKENS).tobytes())

        callers = [threading.Thread(target=work, args=pair) for pair in enumerate(models)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(DEADLINE)
    assert together == {0: {alone[0]}, 1: {alone[1]}}
