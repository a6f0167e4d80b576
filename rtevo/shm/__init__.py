"""Ring buffers in POSIX shared memory."""

from __future__ import annotations

from rtevo.shm.errors import (
    OwnerLost,
    ReaderLost,
    RingClosed,
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
