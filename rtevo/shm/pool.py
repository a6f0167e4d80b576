"""Which slot the writer fills next: one whose contents are still in its processor's cache, where nobody has a claim to them.

Going round through all slots would be simplest, and for messages of megabytes slow: each would be written to memory that the cache has
long forgotten. So the writer takes the slot that was released last. *Released* means by every declared reader, attached or not; where
an observer is behind, the writer takes the oldest message's slot instead, as going round would. So an observer has the whole ring's
length to fall behind, and never loses a message sooner than by going round.

The pool is the writer's private book-keeping. What is shared, the slot of each message, is in the ring (:mod:`rtevo.shm.layout`,
*place*), and the pool of a writer that has died is made again from that.
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
        Of sequence numbers.
    held : iterable of (int, int)
        Sequence number and slot of messages that a critical reader may still have a claim to; oldest first.
    free : iterable of (int, int)
        The others; oldest first.
    """

    def __init__(self, modulus: int, held: Iterable[tuple[int, int]], free: Iterable[tuple[int, int]]) -> None:
        self.modulus = modulus
        self.held = deque(held)
        self.free = list(free)

    def publish(self, sequence: int, slot: int) -> None:
        """Note that a message has been published in a slot."""
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
            None where critical readers hold them all.
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
