"""Waking a process that waits: a POSIX semaphore, used as a hint only.

Whoever changes a counter posts afterwards, always; whoever waits looks at the counters again after every wake-up and after at most
:data:`CHECK_S` without one. A post that is lost (its sender was killed before it) costs that long and nothing else, and one too many
costs a look at the counters.

``sem_timedwait`` measures against the wall clock, which an NTP step can stop for hours, and posix_ipc drops exceptions raised by
signal handlers while it waits. So where the C library is glibc 2.30 or later its ``sem_clockwait`` is called, with the monotonic clock,
on a semaphore that posix_ipc has opened.
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

FOLDER = Path("/dev/shm")  # where Linux keeps shared memory: a segment NAME is FOLDER/NAME, a semaphore FOLDER/sem.NAME

CHECK_S = 0.25  # longest sleep without a look at the counters and at the peers

_MODE = 0o600
_SIZE = 32  # sizeof(sem_t) of 64-bit glibc


def _glibc() -> Any:
    """Return the C library if it is glibc with what `native.sleep` needs, else None."""
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
    """Make a semaphore where there is none; its value does not matter.

    A process killed in the middle of ``sem_open`` leaves a file whose name does not say whose it was, so that nobody could ever
    remove it. What ``sem_open`` does is therefore done here, under a name that says it: glibc's semaphore is a file that holds a
    ``sem_t``, shared between processes, and gets its name by a link.

    Parameters
    ----------
    name : str
        POSIX name, starting with "/".
    temporary : str
        Name of a file to build it in.

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
    """One semaphore; closed when the last reference goes.

    Parameters
    ----------
    name : str
        POSIX name, starting with "/".
    create : bool
        Make it by ``sem_open`` where it is not there yet.

    Raises
    ------
    RingMissing
        It is not there, and `create` is false.
    RingPermission
        It belongs to another user.
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
            raise RingMissing(f"semaphore {name}: not there; the ring that it belongs to has been removed") from None
        except posix_ipc.PermissionsError:
            raise RingPermission(f"semaphore {name}: belongs to another user; choose another name") from None
        except OSError as error:
            raise _no_space(name, error) from None
        self._release = self._semaphore.release
        self._pointer = _LIBRARY.sem_open(name.encode(), 0) if _LIBRARY is not None else None  # the same: libc counts the openings

    def post(self) -> None:
        """Wake whoever waits, or whoever waits next."""
        try:
            self._release()
        except OSError as error:  # 2**31 - 1 posts that nobody waited for are as good as one more
            if error.errno != errno.EOVERFLOW:
                raise

    def wait(self, timeout_s: float) -> bool:
        """Sleep until somebody posts; False where nobody did within `timeout_s`, or a signal came first."""
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
    """Unlink a semaphore; who has it open keeps it. Nothing happens where there is none."""
    with suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_semaphore(name)
