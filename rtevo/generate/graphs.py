"""Functions over static buffers, captured as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Graph"]

log = logging.getLogger(__name__)


class Graph:
    """A function over static buffers: on CUDA captured at its first call and then replayed, elsewhere called.

    Parameters
    ----------
    function : callable
        Reads and writes the same tensors every time, and never waits for the device.
    device : torch.device
    pool : object, optional
        Memory of intermediate results; graphs that never run at the same time may share one.
    capturable : callable, optional
        Called with the stream after the first run; returns whether the function may be captured. If not, it is called every time.
    """

    def __init__(
        self,
        function: Callable[[], None],
        device: torch.device,
        pool: Any = None,
        capturable: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._function, self._device, self._pool, self._capturable = function, device, pool, capturable
        self._run: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Run the function."""
        if self._device.type != "cuda":
            self._function()
            return
        with torch.cuda.device(self._device):
            if self._run is None:
                self._run = self._capture()
            self._run()

    def _capture(self) -> Callable[[], None]:
        """Warm up on a side stream, as capture requires, then record; return the function that replays it."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._function()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        if not self._capturable(stream.cuda_stream):
            log.warning(
                "generator: the work on this device cannot be captured as a CUDA graph: it is queued piece by piece, which is slower"
            )
            return self._function
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._function()
        return graph.replay
