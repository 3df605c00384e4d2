"""Sleeping until another thread changes a word: the systems' primitives, as kernels call them.

Kernels call two operations, which LLVM inlines from the definitions here:

``rllama_sleep(address, value)``  returns at once unless the int32 at the address is ``value``,
else when it is woken; it may also return for no reason, so the caller looks again;
``rllama_wake(address)``          wakes every thread that sleeps there.

What they call outside is one or two functions of the system under names of our own, which
LLVM's linker learns from ``symbols``: futex(2) on Linux, WaitOnAddress on Windows,
os_sync_wait_on_address(3) on macOS 14.4 and later.  Elsewhere sleeping is yielding the core.
"""

from __future__ import annotations

import ctypes
import platform
import sys

SLEEP, WAKE = "rllama_sleep", "rllama_wake"
"""The operations that kernels call."""
SYSTEM_SLEEP, SYSTEM_WAKE = "rllama_system_sleep", "rllama_system_wake"
"""What those call: functions of the system."""

FUTEX_NUMBERS = {
    "x86_64": 202,
    "aarch64": 98,
    "riscv64": 98,
    "loongarch64": 98,
    "ppc64le": 221,
}
"""futex's number of system call, from the kernel's tables of 64-bit little-endian machines."""
_WAIT_PRIVATE, _WAKE_PRIVATE, _EVERYONE = 128, 129, 2**31 - 1

_LINUX = f"""
declare i64 @{SYSTEM_SLEEP}(i64, ...)
define void @{SLEEP}(i64 %address, i32 %value) alwaysinline nounwind {{
  %wide = zext i32 %value to i64
  call i64 (i64, ...) @{SYSTEM_SLEEP}(
    i64 FUTEX, i64 %address, i64 {_WAIT_PRIVATE}, i64 %wide, i64 0)
  ret void
}}
define void @{WAKE}(i64 %address) alwaysinline nounwind {{
  call i64 (i64, ...) @{SYSTEM_SLEEP}(
    i64 FUTEX, i64 %address, i64 {_WAKE_PRIVATE}, i64 {_EVERYONE})
  ret void
}}
"""

_WINDOWS = f"""
declare i32 @{SYSTEM_SLEEP}(ptr, ptr, i64, i32)
declare void @{SYSTEM_WAKE}(ptr)
define void @{SLEEP}(i64 %address, i32 %value) alwaysinline nounwind {{
  %undesired = alloca i32
  store i32 %value, ptr %undesired
  %word = inttoptr i64 %address to ptr
  call i32 @{SYSTEM_SLEEP}(ptr %word, ptr %undesired, i64 4, i32 -1)
  ret void
}}
define void @{WAKE}(i64 %address) alwaysinline nounwind {{
  %word = inttoptr i64 %address to ptr
  call void @{SYSTEM_WAKE}(ptr %word)
  ret void
}}
"""

_MACOS = f"""
declare i32 @{SYSTEM_SLEEP}(ptr, i64, i64, i32)
declare i32 @{SYSTEM_WAKE}(ptr, i64, i32)
define void @{SLEEP}(i64 %address, i32 %value) alwaysinline nounwind {{
  %word = inttoptr i64 %address to ptr
  %wide = zext i32 %value to i64
  call i32 @{SYSTEM_SLEEP}(ptr %word, i64 %wide, i64 4, i32 0)
  ret void
}}
define void @{WAKE}(i64 %address) alwaysinline nounwind {{
  %word = inttoptr i64 %address to ptr
  call i32 @{SYSTEM_WAKE}(ptr %word, i64 4, i32 0)
  ret void
}}
"""

_YIELDING = f"""
declare i32 @{SYSTEM_SLEEP}()
define void @{SLEEP}(i64 %address, i32 %value) alwaysinline nounwind {{
  call i32 @{SYSTEM_SLEEP}()
  ret void
}}
define void @{WAKE}(i64 %address) alwaysinline nounwind {{
  ret void
}}
"""


def definitions(system: str = sys.platform, machine: str = platform.machine()) -> str:
    """Return LLVM code that defines both operations for a system."""
    if system == "win32":
        return _WINDOWS
    if system == "darwin":
        return _MACOS
    if system == "linux" and machine in FUTEX_NUMBERS:
        return _LINUX.replace("FUTEX", str(FUTEX_NUMBERS[machine]))
    return _YIELDING


def symbols() -> dict[str, int]:
    """Return the addresses of the system's functions by the names that kernels know."""
    if sys.platform == "win32":
        library = ctypes.CDLL("KernelBase")
        sleep, wake = library.WaitOnAddress, library.WakeByAddressAll
    else:
        library = ctypes.CDLL(None)
        # Callers clean up their arguments, so a function that takes none may stand in.
        sleep = wake = library.sched_yield
        if definitions() is not _YIELDING and sys.platform == "linux":
            sleep = wake = library.syscall
        elif hasattr(library, "os_sync_wait_on_address"):
            sleep, wake = library.os_sync_wait_on_address, library.os_sync_wake_by_address_all
    functions = {SYSTEM_SLEEP: sleep, SYSTEM_WAKE: wake}
    return {name: ctypes.cast(f, ctypes.c_void_p).value or 0 for name, f in functions.items()}
