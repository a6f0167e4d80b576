"""A few threads that share one kernel's rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["Team"]


class Team:
    """Threads that run one kernel on shares of its work; the caller's thread takes the first.

    The kernels release the GIL and write to places of their own, so that results do not depend on the number of threads. There is no
    pool of Numba's or OpenMP's: nothing spins while it waits, and nothing fights with the pools of other libraries.

    Parameters
    ----------
    threads : int
        1 starts none.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="realign") if threads > 1 else None

    def run(self, work: Callable[[int, int, int], None], shares: int) -> None:
        """Call ``work(worker, first, last)`` for contiguous parts of ``range(shares)``, one a worker, and wait for all."""
        if self._pool is None:
            work(0, 0, shares)
            return
        edges = [shares * n // self.threads for n in range(self.threads + 1)]
        others = [self._pool.submit(work, n, edges[n], edges[n + 1]) for n in range(1, self.threads)]
        work(0, 0, edges[1])
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
