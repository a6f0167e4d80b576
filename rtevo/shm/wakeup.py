"""Waking a waiting process: a POSIX semaphore, used only as a hint.

A process that changes a counter always posts afterwards; a waiting process reads the counters again after every wake-up, and after at
most :data:`CHECK_S` without one. A lost post (its sender was killed before it) costs only that time, and a spurious post costs one read of
the counters.

``sem_timedwait`` measures against the wall clock, which an NTP step can stop for hours, and posix_ipc drops exceptions raised by
signal handlers while it waits. So if the C library is glibc 2.30 or later, its ``sem_clockwait`` is called, with the monotonic clock, on a
semaphore that posix_ipc has opened.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import posix_ipc

from rtevo.shm import native
from rtevo.shm.errors import RingMissing, RingPermission, RingSpace

__all__ = ["CHECK_S", "FOLDER", "Wakeup", "make_semaphore", "remove_semaphore"]

FOLDER = Path("/dev/shm")  # folder of shared memory on Linux: a segment NAME is FOLDER/NAME, a semaphore FOLDER/sem.NAME

CHECK_S = 0.25  # longest sleep without a check of the counters and the peers

_MODE = 0o600
_SIZE = 32  # sizeof(sem_t) of 64-bit glibc


def _glibc() -> Any:
    """Return the C library if it is a glibc that `native.sleep` can use, else None."""
    library = ctypes.CDLL(None)
    if native.sleep is None or not hasattr(library, "gnu_get_libc_version"):
        return None
    library.sem_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    library.sem_open.restype = ctypes.c_void_p
    library.sem_open.argtypes = (ctypes.c_char_p, ctypes.c_int)
    library.sem_close.argtypes = (ctypes.c_void_p,)
    return library


_LIBRARY: Any = _glibc()


def make_semaphore(name: str, temporary: str) -> None:
    """Make a semaphore if it does not exist; its value does not matter.

    A process killed in the middle of ``sem_open`` leaves a file whose name does not identify the owner, so that it could never be
    removed. Therefore this function does the work of ``sem_open`` under an identifying name: glibc's semaphore is a file that holds a
    ``sem_t``, shared between processes, and gets its name by a link.

    Parameters
    ----------
    name : str
        POSIX name, starting with "/".
    temporary : str
        Name of the file in which it is built.

    Raises
    ------
    RingSpace
        Shared memory is full.
    """
    if _LIBRARY is None:
        Wakeup(name, create=True)
        return
    content = ctypes.create_string_buffer(2 * _SIZE)
    _LIBRARY.sem_init(content, 1, 0)
    path = f"{FOLDER}{temporary}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.raw[:_SIZE])
        with suppress(FileExistsError):
            os.link(path, f"{FOLDER}/sem.{name[1:]}")
    except OSError as error:
        raise _no_space(name, error) from None
    finally:
        os.unlink(path)


def _no_space(name: str, error: OSError) -> OSError | RingSpace:
    if error.errno != errno.ENOSPC:
        return error
    return RingSpace(f"semaphore {name}: {FOLDER} is full; remove stale rings with 'python -m rtevo.shm clean'")


class Wakeup:
    """One semaphore; closed with its last reference.

    Parameters
    ----------
    name : str
        POSIX name, starting with "/".
    create : bool
        Make it by ``sem_open`` if it does not exist yet.

    Raises
    ------
    RingMissing
        The semaphore does not exist, and `create` is false.
    RingPermission
        The semaphore belongs to another user.
    RingSpace
        Shared memory is full.
    """

    def __init__(self, name: str, create: bool = False) -> None:
        self.name = name
        self._semaphore: Any = None
        self._pointer: int | None = None
        try:
            self._semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREAT if create else 0, mode=_MODE)
        except posix_ipc.ExistentialError:
            raise RingMissing(f"semaphore {name}: does not exist; its ring has been removed") from None
        except posix_ipc.PermissionsError:
            raise RingPermission(f"semaphore {name}: belongs to another user; choose another name") from None
        except OSError as error:
            raise _no_space(name, error) from None
        self._release = self._semaphore.release
        self._pointer = (
            _LIBRARY.sem_open(name.encode(), 0) if _LIBRARY is not None else None
        )  # the same semaphore: libc counts the openings

    def post(self) -> None:
        """Wake a waiting process, or the next one that waits."""
        try:
            self._release()
        except OSError as error:  # with 2**31 - 1 unused posts another one is not needed
            if error.errno != errno.EOVERFLOW:
                raise

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a post; return False if none came within `timeout_s`, or a signal came first."""
        if self._pointer is None:  # a C library without sem_clockwait
            with suppress(posix_ipc.SignalError):
                try:
                    self._semaphore.acquire(timeout_s)
                    return True
                except posix_ipc.BusyError:
                    pass
            return False
        seconds, nanoseconds = divmod(time.monotonic_ns() + max(0, int(timeout_s * 1e9)), 1_000_000_000)
        assert native.sleep is not None
        code = native.sleep(self._pointer, seconds, nanoseconds)
        if code == 0:
            return True
        if code in (errno.ETIMEDOUT, errno.EINTR):
            return False
        raise OSError(code, f"waiting for semaphore {self.name}")

    def __del__(self) -> None:
        if self._semaphore is not None:
            with suppress(posix_ipc.Error):
                self._semaphore.close()
            if self._pointer is not None:
                _LIBRARY.sem_close(self._pointer)


def remove_semaphore(name: str) -> None:
    """Unlink a semaphore; processes that have it open keep it. Do nothing if it does not exist."""
    with suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_semaphore(name)
