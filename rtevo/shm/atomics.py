"""Atomic operations on words of shared memory, with the memory order that they promise.

A store by NumPy or :mod:`struct` is an ordinary one: the compiler may split it, and a weakly ordered processor (arm64) may make it
visible before the stores that precede it. The functions here are a few instructions each, compiled at import (about 10 ms) by LLVM
from the text below, so that the order is stated once, in LLVM's terms (those of C11), and holds wherever LLVM runs: on x86-64 acquire
loads and release stores are plain moves, on arm64 they become ``ldar`` and ``stlr``, and the fences ``dmb``.

Addresses are plain integers; a call costs about 0.2 us, nearly all of it ctypes. All words are 8 bytes, aligned, unsigned.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm

__all__ = ["begin", "compare_and_swap", "fence", "intact_after", "intact_before", "load", "publish", "store"]

SOURCE = """
define i64 @load(i64 %address) {
  %p = inttoptr i64 %address to i64*
  %value = load atomic i64, i64* %p acquire, align 8
  ret i64 %value
}
define void @store(i64 %address, i64 %value) {
  %p = inttoptr i64 %address to i64*
  store atomic i64 %value, i64* %p release, align 8
  ret void
}
define i64 @compare_and_swap(i64 %address, i64 %expected, i64 %new) {
  %p = inttoptr i64 %address to i64*
  %pair = cmpxchg i64* %p, i64 %expected, i64 %new seq_cst seq_cst, align 8
  %found = extractvalue { i64, i1 } %pair, 0
  ret i64 %found
}
define void @fence() {
  fence seq_cst
  ret void
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
define void @publish(i64 %stamp, i64 %mark, i64 %head, i64 %next) {
  %end = add i64 %stamp, 8
  %e = inttoptr i64 %end to i64*
  %h = inttoptr i64 %head to i64*
  store atomic i64 %mark, i64* %e release, align 8
  store atomic i64 %next, i64* %h release, align 8
  ret void
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


def _compile() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(SOURCE)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


_ENGINE = _compile()  # owns the machine code: lives as long as the module
_WORD = ctypes.c_uint64


def _function(name: str, arguments: int, returns: bool = True) -> Any:
    # PYFUNCTYPE: keep the GIL, the calls are far too short to give it up
    prototype = ctypes.PYFUNCTYPE(_WORD if returns else None, *[_WORD] * arguments)
    return prototype(_ENGINE.get_function_address(name))


load = _function("load", 1)
"""load(address) -> value, acquire: what was written before the value's release store is visible from here on."""
store = _function("store", 2, returns=False)
"""store(address, value), release: everything written before it is visible to whoever loads the value."""
compare_and_swap = _function("compare_and_swap", 3)
"""compare_and_swap(address, expected, new) -> value found, sequentially consistent; stored where it equals `expected`."""
fence = _function("fence", 0, returns=False)
"""fence(): full barrier; orders an earlier store before a later load, which no acquire or release does."""
begin = _function("begin", 3)
"""begin(stamp, mark, state) -> state word: where that is 0, mark the slot as being written, before anything is written into it."""
publish = _function("publish", 4, returns=False)
"""publish(stamp, mark, head, next): mark the slot as whole, then hand it over by advancing the head, both after its contents."""
intact_before = _function("intact_before", 2)
"""intact_before(stamp, mark) -> 0 where the slot holds the sequence number whole, before its contents are read."""
intact_after = _function("intact_after", 2)
"""intact_after(stamp, mark) -> 0 where nobody has begun to overwrite the slot, after its contents have been read."""
