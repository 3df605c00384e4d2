"""The compiled side of a team of threads: jobs, barriers, shared counters, sleep.

The leader is the Python thread that calls; the workers are threads of their own, which stay
inside compiled code, without the GIL, until the team ends.  Whoever waits looks at a word for
as long as it may change any moment, and then sleeps in the system until the one who changes
it wakes the sleepers.  Where nobody sleeps, changing a word costs no system call.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pyrllama.cpu import waiting
from pyrllama.cpu.instructions import pause
from pyrllama.cpu.kernel import call, inline, kernel, part
from pyrllama.cpu.records import (
    ARGUMENT,
    ARRIVED,
    BARRIER_SPINS,
    GENERATION,
    IDLE_SPINS,
    JOB,
    N_THREADS,
    PHASE,
    SLEEPERS,
)
from pyrllama.cpu.simd import load_i64, store
from pyrllama.cpu.vectors import I32, I64, call_llvm, instruction, pointer


@instruction
def atomic_add(_typing: Any, address: Any, value: Any) -> Any:
    """Add to an int64 that threads share and return what it was."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


@instruction
def atomic_load(_typing: Any, address: Any) -> Any:
    """Read an int64 that threads share."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0], I64), "seq_cst", 8)

    return types.int64(types.int64), build


@instruction
def atomic_store(_typing: Any, address: Any, value: Any) -> Any:
    """Write an int64 that threads share."""

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], pointer(builder, args[0], I64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@instruction
def sleep(_typing: Any, address: Any, value: Any) -> Any:
    """Sleep while the low half of an int64 is that of ``value``; see ``waiting.py``."""

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        operands = [args[0], builder.trunc(args[1], I32)]
        call_llvm(builder, waiting.SLEEP, ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@instruction
def wake(_typing: Any, address: Any) -> Any:
    """Wake every thread that sleeps at an address; see ``waiting.py``."""

    def build(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        call_llvm(builder, waiting.WAKE, ir.VoidType(), list(args))
        return context.get_dummy_value()

    return types.void(types.int64), build


@inline
def take(counter: int, count: int) -> int:
    """Take the next ``count`` pieces of shared work and return the first one's number."""
    first: int = atomic_add(counter, count)
    return first


@part
def await_change(word: int, seen: int, spins: int) -> None:
    """Wait until an int64 that another thread advances is no longer ``seen``."""
    for _ in range(spins):
        if atomic_load(word) != seen:
            return
        pause()
    # Whoever advances the word looks for sleepers afterwards, and a sleeper looks at the word
    # after it has made itself known: one of the two sees the other.
    atomic_add(word + SLEEPERS, 1)
    while atomic_load(word) == seen:
        sleep(word, seen)
    atomic_add(word + SLEEPERS, -1)


@part
def advance(word: int) -> None:
    """Add 1 to an int64 that others wait on, and wake those that sleep."""
    atomic_add(word, 1)
    if atomic_load(word + SLEEPERS) != 0:
        wake(word)


@part
def barrier(team: int, n_threads: int) -> None:
    """Wait until every thread of the team is here."""
    if n_threads == 1:
        return
    phase = atomic_load(team + PHASE)
    if atomic_add(team + ARRIVED, 1) == n_threads - 1:
        atomic_store(team + ARRIVED, 0)
        advance(team + PHASE)
    else:
        await_change(team + PHASE, phase, load_i64(team + BARRIER_SPINS))


@kernel
def lead(team: int, job: int, argument: int) -> None:
    """Run a job, a kernel's address and its argument, on every thread; return when all are done."""
    store(team + JOB, job)
    store(team + ARGUMENT, argument)
    advance(team + GENERATION)
    call(job, argument, 0)
    barrier(team, load_i64(team + N_THREADS))


@kernel
def serve(team: int, worker: int) -> None:
    """Do a worker's part of every job until the team is dismissed."""
    seen = 0
    while True:
        await_change(team + GENERATION, seen, load_i64(team + IDLE_SPINS))
        seen += 1
        job = load_i64(team + JOB)
        if job == 0:
            break
        call(job, load_i64(team + ARGUMENT), worker)
        barrier(team, load_i64(team + N_THREADS))


@kernel
def dismiss(team: int) -> None:
    """Let the workers end; no job may follow."""
    store(team + JOB, 0)
    advance(team + GENERATION)


@kernel
def spin(word: int, spins: int) -> None:
    """Look at an int64 as often as ``await_change`` does, to learn how long that takes."""
    for _ in range(spins):
        if atomic_load(word) != 0:
            return
        pause()
