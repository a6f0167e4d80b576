"""How the kernels are compiled: one decorator, one cache folder.

Compiled code is kept in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``, then ``rtevo/kernels``), in a folder of its
own for every processor, Numba version and state of the kernels' source: a home shared by several machines never gives one of them
another's code, and an edited helper that Numba inlined elsewhere never leaves stale code behind. ``NUMBA_CACHE_DIR`` wins where
it is set.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba

__all__ = ["COMPILING", "FASTMATH", "cache_folder", "cache_lock", "helper", "is_compiled", "kernel"]


COMPILING = "compiling the kernels, once on this computer: about half a minute; later starts load them"
"""Message if the kernels are not compiled yet. Compiling took 29 s of processor time, loading 1.5 s."""
UNUSED_S = 90 * 86400.0  # compiled code of other versions is kept this long
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}  # what vector sums need; NaN and infinity are honoured


def _fingerprint() -> str:
    """Name of the processor, and a hash of all that compiled code depends on."""
    name = llvmlite.binding.get_host_cpu_name()
    digest = hashlib.sha256(f"{name} {llvmlite.binding.get_host_cpu_features().flatten()}".encode())
    digest.update(f"{numba.__version__} {llvmlite.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return f"{name}-{digest.hexdigest()[:16]}"


def _default_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rtevo" / "kernels" / _fingerprint()


_FOLDER = Path(numba.config.CACHE_DIR) if numba.config.CACHE_DIR else _default_folder()


def cache_folder() -> Path:
    """Folder that holds the compiled kernels."""
    return _FOLDER


def is_compiled() -> bool:
    """Whether there are compiled kernels of this version for this processor: else the first call compiles them."""
    return next(_FOLDER.rglob("*.nbi"), None) is not None


@contextmanager
def cache_lock() -> Iterator[None]:
    """Hold the cache folder alone, so that of two processes that start at once one compiles and the other loads.

    Where the folder cannot be written, nothing is locked: Numba then compiles in every process.
    """
    try:
        _FOLDER.mkdir(parents=True, exist_ok=True)
        lock = open(_FOLDER / "lock", "w")  # noqa: SIM115 - closed below, with the lock
    except OSError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(_FOLDER / "lock")
        _prune(_FOLDER)
        yield  # closing the file releases the lock


def _prune(folder: Path) -> None:
    """Remove folders of other versions that nobody used for a long time."""
    for lock in folder.parent.glob("*-*/lock"):
        if lock.parent != folder and time.time() - lock.stat().st_mtime > UNUSED_S:
            shutil.rmtree(lock.parent, ignore_errors=True)


def helper(function: Callable[..., Any]) -> Any:
    """Mark a function that kernels call: it becomes part of each of them.

    Left as a function of its own it would be linked by name, and the first copy loaded would serve every kernel of the process. Copies
    differ in their rounding, so the process that compiled would differ in the last bits from those that load from the cache.
    """
    return numba.njit(inline="always")(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel with Numba on its first call: no GIL, cached, NaN and infinity honoured.

    A kernel runs on one thread: callers split work into chunks of rows themselves, so that results do not depend on the number of
    threads.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_FOLDER)
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)(function)
    finally:
        numba.config.CACHE_DIR = before
