"""The few machine instructions under a ring: atomic operations on words of shared memory, and the sleep on a semaphore.

A store by NumPy or :mod:`struct` is an ordinary one: the compiler may split it, and a weakly ordered processor (arm64) may make it
visible before the stores that precede it. The functions here are a few instructions each, compiled at import (about 20 ms) by LLVM
from the text below, so that the order is stated once, in LLVM's terms (those of C11), and holds wherever LLVM runs: on x86-64 acquire
loads and release stores are plain moves, on arm64 they become ``ldar`` and ``stlr``, and the fences ``dmb``.

They are built-in functions to Python, by wrappers that are compiled with them. Called through ctypes instead they take twice as long
(0.2 us), and 3 to 5 us each in a process that has just been woken, its caches cold; that was a fifth of a hand-over.

Addresses are plain integers. All words are 8 bytes, aligned, unsigned.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm

__all__ = ["arrived", "begin", "compare_and_swap", "intact_after", "intact_before", "lags", "load", "publish", "sleep", "store"]

SOURCE = """
define i64 @load(i64 %address) {
  %p = inttoptr i64 %address to i64*
  %value = load atomic i64, i64* %p acquire, align 8
  ret i64 %value
}
define i64 @store(i64 %address, i64 %value) {
  %p = inttoptr i64 %address to i64*
  store atomic i64 %value, i64* %p release, align 8
  ret i64 0
}
define i64 @compare_and_swap(i64 %address, i64 %expected, i64 %new) {
  %p = inttoptr i64 %address to i64*
  %pair = cmpxchg i64* %p, i64 %expected, i64 %new seq_cst seq_cst, align 8
  %found = extractvalue { i64, i1 } %pair, 0
  ret i64 %found
}
define i64 @begin(i64 %stamp, i64 %mark, i64 %state) {
entry:
  %s = inttoptr i64 %state to i64*
  %value = load atomic i64, i64* %s acquire, align 8
  %open = icmp eq i64 %value, 0
  br i1 %open, label %mark_it, label %done
mark_it:
  %b = inttoptr i64 %stamp to i64*
  store atomic i64 %mark, i64* %b monotonic, align 8
  fence release
  br label %done
done:
  ret i64 %value
}
define i64 @publish(i64 %stamp, i64 %mark, i64 %now, i64 %place, i64 %slot, i64 %head, i64 %next) {
  %end = add i64 %stamp, 8
  %time = add i64 %stamp, 16
  %e = inttoptr i64 %end to i64*
  %t = inttoptr i64 %time to i64*
  %h = inttoptr i64 %head to i64*
  %p = inttoptr i64 %place to i64*
  store atomic i64 %now, i64* %t monotonic, align 8
  store atomic i64 %mark, i64* %e release, align 8
  store atomic i64 %slot, i64* %p release, align 8
  store atomic i64 %next, i64* %h release, align 8
  ret i64 0
}
define i64 @arrived(i64 %head, i64 %tail, i64 %places, i64 %slots) {
entry:
  %h = inttoptr i64 %head to i64*
  %next = load atomic i64, i64* %h acquire, align 8
  %nothing = icmp eq i64 %next, %tail
  br i1 %nothing, label %none, label %some
none:
  ret i64 0
some:
  %index = urem i64 %tail, %slots
  %offset = mul i64 %index, 128
  %place = add i64 %places, %offset
  %p = inttoptr i64 %place to i64*
  %slot = load atomic i64, i64* %p acquire, align 8
  %answer = add i64 %slot, 1
  ret i64 %answer
}
define i64 @lags(i64 %lines, i64 %count, i64 %critical, i64 %head, i64 %gap) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %following, %body ]
  %most = phi i64 [ 0, %entry ], [ %most_now, %body ]
  %most_critical = phi i64 [ 0, %entry ], [ %most_critical_now, %body ]
  %done = icmp uge i64 %i, %count
  br i1 %done, label %end, label %body
body:
  %offset = mul i64 %i, 128
  %line = add i64 %lines, %offset
  %t = inttoptr i64 %line to i64*
  %tail = load atomic i64, i64* %t acquire, align 8
  %distance = sub i64 %head, %tail
  %wrapped = icmp ult i64 %head, %tail
  %across = sub i64 %distance, %gap
  %real = select i1 %wrapped, i64 %across, i64 %distance
  %large = icmp ugt i64 %real, 4294967295
  %lag = select i1 %large, i64 4294967295, i64 %real
  %more = icmp ugt i64 %lag, %most
  %most_now = select i1 %more, i64 %lag, i64 %most
  %shifted = lshr i64 %critical, %i
  %bit = and i64 %shifted, 1
  %lag_if_critical = mul i64 %lag, %bit
  %more_critical = icmp ugt i64 %lag_if_critical, %most_critical
  %most_critical_now = select i1 %more_critical, i64 %lag_if_critical, i64 %most_critical
  %following = add i64 %i, 1
  br label %loop
end:
  %high = shl i64 %most, 32
  %answer = or i64 %high, %most_critical
  ret i64 %answer
}
define i64 @intact_before(i64 %stamp, i64 %mark) {
  %end = add i64 %stamp, 8
  %e = inttoptr i64 %end to i64*
  %b = inttoptr i64 %stamp to i64*
  %ended = load atomic i64, i64* %e acquire, align 8
  %begun = load atomic i64, i64* %b acquire, align 8
  %x = xor i64 %ended, %mark
  %y = xor i64 %begun, %mark
  %or = or i64 %x, %y
  ret i64 %or
}
define i64 @intact_after(i64 %stamp, i64 %mark) {
  %b = inttoptr i64 %stamp to i64*
  fence acquire
  %begun = load atomic i64, i64* %b monotonic, align 8
  %x = xor i64 %begun, %mark
  ret i64 %x
}
"""


_SLEEP = """
define i64 @sleep(i64 %semaphore, i64 %seconds, i64 %nanoseconds) {{
  %until = alloca [2 x i64], align 8
  %first = getelementptr [2 x i64], [2 x i64]* %until, i64 0, i64 0
  %second = getelementptr [2 x i64], [2 x i64]* %until, i64 0, i64 1
  store i64 %seconds, i64* %first
  store i64 %nanoseconds, i64* %second
  %thread = call i8* inttoptr (i64 {save} to i8* ()*)()
  %failed = call i32 inttoptr (i64 {wait} to i32 (i64, i32, i64*)*)(i64 %semaphore, i32 {clock}, i64* %first)
  %place = call i32* inttoptr (i64 {error} to i32* ()*)()
  %number = load i32, i32* %place
  call void inttoptr (i64 {restore} to void (i8*)*)(i8* %thread)
  %good = icmp eq i32 %failed, 0
  %answer = select i1 %good, i32 0, i32 %number
  %wide = zext i32 %answer to i64
  ret i64 %wide
}}
"""

_ARGUMENTS = {
    "load": 1,
    "store": 2,
    "compare_and_swap": 3,
    "begin": 3,
    "publish": 7,
    "arrived": 4,
    "lags": 5,
    "intact_before": 2,
    "intact_after": 2,
}


def _c_api(name: str) -> int:
    """Return the address of a function of Python's C API."""
    return int(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0)


def _sleep_source() -> str:
    """Return the text of `sleep`; empty if the C library has no sem_clockwait (in glibc since 2.30)."""
    library = ctypes.CDLL(None)
    if not (hasattr(library, "sem_clockwait") and hasattr(library, "__errno_location")):
        return ""
    functions = {
        "wait": library.sem_clockwait,
        "error": library["__errno_location"],
        "save": ctypes.pythonapi.PyEval_SaveThread,
        "restore": ctypes.pythonapi.PyEval_RestoreThread,
    }
    return _SLEEP.format(clock=1, **{key: ctypes.cast(each, ctypes.c_void_p).value for key, each in functions.items()})  # CLOCK_MONOTONIC


def _wrapper(name: str, count: int) -> str:
    """Return the text of a function that Python can call (METH_FASTCALL): integers in, an integer out."""
    lines = [f"define i8* @python_{name}(i8* %self, i8** %arguments, i64 %count) {{", f"  %right = icmp eq i64 %count, {count}"]
    lines += ["  br i1 %right, label %convert, label %wrong", "convert:"]
    for index in range(count):
        lines += [
            f"  %at{index} = getelementptr i8*, i8** %arguments, i64 {index}",
            f"  %object{index} = load i8*, i8** %at{index}",
            f"  %word{index} = call i64 inttoptr (i64 {_c_api('PyLong_AsUnsignedLongLong')} to i64 (i8*)*)(i8* %object{index})",
        ]
    words = ", ".join(f"i64 %word{index}" for index in range(count))
    return "\n".join(
        [
            *lines,
            f"  %error = call i8* inttoptr (i64 {_c_api('PyErr_Occurred')} to i8* ()*)()",
            "  %good = icmp eq i8* %error, null",
            "  br i1 %good, label %work, label %failed",
            "work:",
            f"  %result = call i64 @{name}({words})",
            f"  %answer = call i8* inttoptr (i64 {_c_api('PyLong_FromUnsignedLongLong')} to i8* (i64)*)(i64 %result)",
            "  ret i8* %answer",
            "wrong:",
            f"  call i32 inttoptr (i64 {_c_api('PyErr_BadArgument')} to i32 ()*)()",
            "  br label %failed",
            "failed:",
            "  ret i8* null",
            "}",
        ]
    )


class _MethodDef(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_METH_FASTCALL = 0x0080


def _compile() -> tuple[Any, dict[str, _MethodDef]]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    sleep_source = _sleep_source()
    arguments = _ARGUMENTS | ({"sleep": 3} if sleep_source else {})
    module = llvm.parse_assembly("\n".join([SOURCE, sleep_source, *(_wrapper(*each) for each in arguments.items())]))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    table = {name: _MethodDef(name.encode(), engine.get_function_address(f"python_{name}"), _METH_FASTCALL, None) for name in arguments}
    return engine, table


_ENGINE, _TABLE = _compile()  # these own the machine code and its entry points, for the life of the module


def _function(name: str) -> Callable[..., int]:
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    made: Callable[..., int] = make(ctypes.addressof(_TABLE[name]), None, None)
    return made


load = _function("load")
"""load(address) -> value, acquire: everything written before the value's release store is visible afterwards."""
store = _function("store")
"""store(address, value), release: everything written before it is visible to a process that loads the value."""
compare_and_swap = _function("compare_and_swap")
"""compare_and_swap(address, expected, new) -> value found, sequentially consistent; stored if it equals `expected`."""
begin = _function("begin")
"""begin(stamp, mark, state) -> state word: if it is 0, mark the slot as being written, before its contents are written."""
publish = _function("publish")
"""publish(stamp, mark, now, place, slot, head, next): store the time, mark the slot as whole, store its number at `place`, and then
advance the head; all after its contents."""
arrived = _function("arrived")
"""arrived(head, tail, places, slots) -> 0 if the head is at `tail`, else 1 + the slot of the message `tail`."""
lags = _function("lags")
"""lags(lines, count, critical, head, gap) -> lag of the slowest reader << 32 | lag of the slowest critical one.

`critical` has a bit for each reader's line, `gap` is 2**64 less the modulus.
"""
intact_before = _function("intact_before")
"""intact_before(stamp, mark) -> 0 if the slot holds the sequence number whole, before its contents are read."""
intact_after = _function("intact_after")
"""intact_after(stamp, mark) -> 0 if no process has begun to overwrite the slot, after its contents have been read."""
sleep: Callable[..., int] | None = _function("sleep") if "sleep" in _TABLE else None
"""sleep(semaphore, seconds, nanoseconds) -> 0, or errno: wait for a semaphore (a sem_t's address) until a time of CLOCK_MONOTONIC,
without the GIL; None if the C library cannot."""
