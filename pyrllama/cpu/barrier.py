"""The compiled side of a team of threads: jobs, barriers, shared counters, sleep.

The leader is the Python thread that calls; the workers are threads of their own.  A worker
stays inside compiled code, without the GIL, while jobs follow each other closely, and sleeps
on a Python lock when none has come for a while.  Waiting spins shortly and then yields the
core, so that a machine with more runnable threads than cores slows down in proportion.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pyrllama.cpu.kernel import call, inline, kernel, part
from pyrllama.cpu.records import (
    ARGUMENT,
    ARRIVED,
    ASLEEP,
    AWAKE,
    GENERATION,
    JOB,
    N_THREADS,
    PHASE,
    SEEN,
    STATE,
    WAKE,
    WORKERS,
)
from pyrllama.cpu.simd import I64, call_llvm, instruction, load_i64, pause, pointer, store

BARRIER_SPINS = 2000
"""Short waits before a thread at a barrier offers its core to others."""
IDLE_SPINS, IDLE_YIELDS = 2000, 2000
"""Waits of a worker without a job before it sleeps: about a millisecond."""


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
def atomic_replace(_typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write an int64 if it has the expected value; return whether it had."""

    def build(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        place = pointer(builder, args[0], I64)
        result = builder.cmpxchg(place, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), build


@instruction
def yield_core(_typing: Any) -> Any:
    """Let another thread have the core; the symbol is the system's, see ``compiler.py``."""

    def build(context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        call_llvm(builder, "rllama_yield", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), build


@inline
def take(counter: int, count: int) -> int:
    """Take the next ``count`` pieces of shared work and return the first one's number."""
    first: int = atomic_add(counter, count)
    return first


@part
def barrier(team: int, n_threads: int) -> None:
    """Wait until every thread of the team is here."""
    if n_threads == 1:
        return
    phase = atomic_load(team + PHASE)
    if atomic_add(team + ARRIVED, 1) == n_threads - 1:
        atomic_store(team + ARRIVED, 0)
        atomic_store(team + PHASE, phase + 1)
        return
    spins = 0
    while atomic_load(team + PHASE) == phase:
        spins += 1
        if spins < BARRIER_SPINS:
            pause()
        else:
            yield_core()


@kernel
def announce(team: int, job: int, argument: int) -> None:
    """Publish a job (a kernel's address and its argument) and mark the workers to be woken."""
    store(team + JOB, job)
    store(team + ARGUMENT, argument)
    atomic_add(team + GENERATION, 1)
    for worker in range(1, load_i64(team + N_THREADS)):
        words = team + WORKERS * worker
        if atomic_replace(words + STATE, ASLEEP, AWAKE):
            store(words + WAKE, 1)


@kernel
def lead(team: int) -> None:
    """Do the leader's part of the published job and wait for the workers."""
    call(load_i64(team + JOB), load_i64(team + ARGUMENT), 0)
    barrier(team, load_i64(team + N_THREADS))


@kernel
def serve(team: int, worker: int) -> None:
    """Do a worker's part of every job until none has come for a while, or job 0 comes."""
    words = team + WORKERS * worker
    seen = load_i64(words + SEEN)
    waits = 0
    while True:
        if atomic_load(team + GENERATION) != seen:
            seen += 1
            waits = 0
            job = load_i64(team + JOB)
            if job == 0:
                break
            call(job, load_i64(team + ARGUMENT), worker)
            barrier(team, load_i64(team + N_THREADS))
            continue
        waits += 1
        if waits < IDLE_SPINS:
            pause()
        elif waits < IDLE_SPINS + IDLE_YIELDS:
            yield_core()
        else:
            atomic_store(words + STATE, ASLEEP)
            # A job may have come between the last look and falling asleep.  Whoever changes
            # the state back decides: the worker goes on, or the leader opens its gate.
            missed = atomic_load(team + GENERATION) != seen
            if not (missed and atomic_replace(words + STATE, ASLEEP, AWAKE)):
                break
            waits = 0
    store(words + SEEN, seen)
