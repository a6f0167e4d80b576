"""Ring buffers in POSIX shared memory: one writer, declared readers, messages handed over without a copy.

This package knows nothing of fMRI, and imports only the base of its errors from rtevo.

>>> with Ring.create("/rtevo-demo", slot_dtype, slots=8, readers=["decode", Reader("record", critical=False)]): ...  # doctest: +SKIP

The **owner** makes a ring, removes it at the end, and need do nothing else with it. The **writer** and the **readers** attach by
name, from any process:

>>> with Ring.attach("/rtevo-demo", writer=True) as ring:             # doctest: +SKIP
...     with ring.reserve(timeout_s=2) as slot:                       # a record in shared memory, to be filled in place
...         slot["index"] = 7
...         np.multiply(volume, scale, out=slot["data"])
...                                                                   # published here; not on an exception
>>> with Ring.attach("/rtevo-demo", reader="decode") as ring:         # doctest: +SKIP
...     for slot in ring:                                             # or: with ring.read(timeout_s=...) as slot
...         work_on(slot["data"])                                     # a read-only view, valid until the next turn

Rules
-----
Critical readers and observers
    The writer waits for a **critical** reader, up to a deadline; so a critical reader never sees a message change, and misses none.
    It never waits for an **observer**, which may be overtaken. An observer can read how many messages it lost before the present one
    (:attr:`Ring.lost`; in total: :meth:`Ring.statistics`), receives only messages that are whole, and gets :class:`RingOverrun` on
    leaving the block if a message was overwritten meanwhile.
End of the stream
    The writer ends it by closing its handle or by :meth:`Ring.close_writing`; readers get the remaining messages, then
    :class:`RingClosed`.
Death
    Any process may be killed at any instruction. Published messages stay and are read; an unpublished message never existed.
    A process that waits notices within half a second: :class:`WriterLost` (after everything has been read), :class:`ReaderLost` (a
    critical reader whose unread messages fill the ring), :class:`OwnerLost`. A role whose holder is dead can be attached to again:
    a writer continues the sequence, a reader continues with the first message that its predecessor had not released.
    Processes are told apart by id and start time (:mod:`rtevo.shm.process`).
Left-overs
    A ring whose owner is dead is replaced by the next :meth:`Ring.create` of its name. :func:`clean`, or ``python -m rtevo.shm
    clean``, removes rings whose owner and members are all dead, and nothing else; ``python -m rtevo.shm`` lists all rings.
Waiting for several rings
    :func:`wait_any`, for readers declared with the same semaphore.

How it works
------------
The bytes are described in :mod:`rtevo.shm.layout`. The writer alone writes the *head* (the number of the next message), each reader
its own *tail* (the number of the next message to release), each in a line of its own. The writer chooses the slot of message
``s``, the one released last (:mod:`rtevo.shm.pool`); it stands at *place* ``s % slots``, and the slot's stamp holds the number of its
message. There are no locks, so that no process can die holding one.

*Counters are the truth, semaphores a hint.* After every change of a counter its author posts; a waiting process reads the counters before
sleeping, after every wake-up, and four times a second (:mod:`rtevo.shm.wakeup`). So a lost post costs a quarter of a second, and a
spurious one nothing. Posting only when the other side seems to need it would lose wake-ups.

Memory order
------------
Contents are written by ordinary stores; everything that orders them is in :mod:`rtevo.shm.native`, in the terms of C11.

==================================  =================================================================================================
what must hold                      by
==================================  =================================================================================================
a reader that sees the head sees    the head is stored with *release*, loaded with *acquire*
the contents behind it
a writer that sees the tail may     the tail is stored with *release* after the last look at the contents, loaded with *acquire* before
overwrite what lies before it       the first new byte
an observer detects an overwritten  sequence lock: *begin* is stored, then a *release* fence, then the contents, then *end* (release);
slot                                the observer loads *end* (acquire) and *begin*, uses the contents, then an *acquire* fence, then
                                    *begin* again
there is one writer, and one        roles are taken by compare-and-swap of one word that holds process id and start time
process per reader
==================================  =================================================================================================

On x86-64 loads and stores have acquire and release order anyway: the instructions are plain moves, and it only matters that the
compiler neither splits nor moves them. On arm64 they are ``ldar``, ``stlr`` and ``dmb``; a test compiles them for arm64 and checks.

Limits
------
Linux. Names start with "/rtevo-" and have 27 characters at most, so that they and their semaphores would fit macOS's 30; macOS itself
is refused with a message (no ``sem_timedwait``, no list of segments). All processes of a ring share a PID namespace. A handle belongs
to one process, and its reading end and its writing end to one thread each at a time. Readers that share a semaphore are read by one thread.
"""

from __future__ import annotations

from rtevo.shm.errors import (
    OwnerLost,
    ReaderLost,
    RingClosed,
    RingError,
    RingInUse,
    RingMismatch,
    RingMissing,
    RingOverrun,
    RingPeerLost,
    RingPermission,
    RingSpace,
    RingTimeout,
    RingUnsupported,
    WriterLost,
)
from rtevo.shm.layout import Reader
from rtevo.shm.ring import Ring, wait_any
from rtevo.shm.segment import clean
from rtevo.shm.statistics import ReaderStatistics, RingStatistics

__all__ = [
    "OwnerLost",
    "Reader",
    "ReaderLost",
    "ReaderStatistics",
    "Ring",
    "RingClosed",
    "RingError",
    "RingInUse",
    "RingMismatch",
    "RingMissing",
    "RingOverrun",
    "RingPeerLost",
    "RingPermission",
    "RingSpace",
    "RingStatistics",
    "RingTimeout",
    "RingUnsupported",
    "WriterLost",
    "clean",
    "wait_any",
]
