# ruff: noqa: N818  (the names describe events: RingClosed is an end of stream, not a mistake)
"""The errors of rings.

::

    RingError (rtevo.errors)   base of all of these
    |-- RingTimeout            nothing to read, or no free slot, within the time given (also a TimeoutError)
    |-- RingClosed             the writer has ended the stream and everything in it has been read
    |-- RingOverrun            the slot that an observer was reading was overwritten meanwhile: discard the data
    |-- RingPeerLost           another process of the ring is gone; names it
    |   |-- WriterLost         died, or left on an exception; its published messages have been read
    |   |-- ReaderLost         a critical reader died, and its unread slots block the writer
    |   `-- OwnerLost          the process that created the ring died: the session is over
    |-- RingInUse              the requested name or role belongs to a live process
    |-- RingMissing            there is no ring of that name
    |-- RingMismatch           it is not the expected ring; names the field, the expected and the found value
    |-- RingSpace              shared memory is full
    |-- RingPermission         the ring belongs to another user
    `-- RingUnsupported        this platform lacks what rings need
"""

from __future__ import annotations

from rtevo.errors import RingError

__all__ = [
    "OwnerLost",
    "ReaderLost",
    "RingClosed",
    "RingError",
    "RingInUse",
    "RingMismatch",
    "RingMissing",
    "RingOverrun",
    "RingPeerLost",
    "RingPermission",
    "RingSpace",
    "RingTimeout",
    "RingUnsupported",
    "WriterLost",
]


class RingTimeout(RingError, TimeoutError):
    """Nothing to read, or no free slot, within the time given."""


class RingClosed(RingError):
    """The stream has ended: nothing more will be published, and nothing is left to read."""


class RingOverrun(RingError):
    """The slot that an observer was reading was overwritten meanwhile.

    Parameters
    ----------
    message : str
        The ring, reader and slot.
    lost : int
        Number of slots lost.
    """

    def __init__(self, message: str, lost: int = 1) -> None:
        self.lost = lost
        super().__init__(message)


class RingPeerLost(RingError):
    """Another process of the ring is gone.

    Parameters
    ----------
    message : str
        The ring, the process, and what to do.
    name : str
        The peer: "writer", "owner" or the reader's name.
    pid : int
        Its process id (0 if it has left already).
    """

    def __init__(self, message: str, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        super().__init__(message)


class WriterLost(RingPeerLost):
    """The writer died, or left on an exception, and its published messages have been read."""


class ReaderLost(RingPeerLost):
    """A critical reader died, and its unread slots block the writer."""


class OwnerLost(RingPeerLost):
    """The process that created the ring died."""


class RingInUse(RingError):
    """The requested name or role belongs to a live process."""


class RingMissing(RingError):
    """There is no ring of that name."""


class RingMismatch(RingError):
    """The segment is not the expected ring.

    Parameters
    ----------
    ring : str
        Name of the ring.
    field : str
        The field that differs.
    expected, found : object
        Both values.
    """

    def __init__(self, ring: str, field: str, expected: object, found: object) -> None:
        self.field, self.expected, self.found = field, expected, found
        super().__init__(f"ring {ring}: {field}: expected {expected}, found {found}")


class RingSpace(RingError):
    """Shared memory is full."""


class RingPermission(RingError):
    """The ring belongs to another user."""


class RingUnsupported(RingError):
    """This platform lacks what rings need."""
