"""Choice of the writer's next slot: if possible, a released one whose contents are still in the processor's cache.

Cycling through all slots would be simplest, but slow for messages of megabytes: each would be written to memory that has left the
cache. So the writer takes the slot that was released last. *Released* means by every declared reader, attached or not; if an observer
is behind, the writer takes the oldest message's slot instead, as cycling would. So an observer can fall behind by the whole ring, and
never loses a message sooner than with cycling.

The pool is the writer's private book-keeping. The slot of each message is shared in the ring (:mod:`rtevo.shm.layout`, *place*), from
which the pool of a dead writer is rebuilt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

__all__ = ["Pool"]


class Pool:
    """Slots and the messages in them.

    Parameters
    ----------
    modulus : int
        Modulus of sequence numbers.
    held : iterable of (int, int)
        Sequence number and slot of messages that a critical reader may still need; oldest first.
    free : iterable of (int, int)
        The other slots; oldest first.
    """

    def __init__(self, modulus: int, held: Iterable[tuple[int, int]], free: Iterable[tuple[int, int]]) -> None:
        self.modulus = modulus
        self.held = deque(held)
        self.free = list(free)

    def publish(self, sequence: int, slot: int) -> None:
        """Record that a message has been published in a slot."""
        self.held.append((sequence, slot))

    def take(self, head: int, critical_lag: int, lag: int) -> int | None:
        """Choose the slot of the next message.

        Parameters
        ----------
        head : int
            Sequence number of the next message.
        critical_lag, lag : int
            Messages that the slowest critical reader, and the slowest of all, have not released.

        Returns
        -------
        int or None
            None if critical readers hold all slots.
        """
        free = self.free
        while len(self.held) > critical_lag:
            free.append(self.held.popleft())
        if not free:
            return None
        if (head - free[-1][0]) % self.modulus > lag:
            return free.pop()[1]
        if (head - free[0][0]) % self.modulus <= lag:
            return free.pop(0)[1]
        return free.pop(bisect_left(free, True, key=lambda each: (head - each[0]) % self.modulus <= lag) - 1)[1]
