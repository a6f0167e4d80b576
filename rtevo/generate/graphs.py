"""Functions over static buffers, captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Graph"]


class Graph:
    """A function over static buffers: captured at its first call on CUDA and replayed from then on, simply called elsewhere.

    Parameters
    ----------
    function : callable
        Reads and writes the same tensors every time, and never waits for the device.
    device : torch.device
    pool : object, optional
        Memory of intermediate results; graphs that never run at the same time may share one.
    """

    def __init__(
        self,
        function: Callable[[], None],
        device: torch.device,
        pool: Any = None,
    ) -> None:
        self._function, self._device, self._pool = function, device, pool
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run the function."""
        if self._device.type != "cuda":
            self._function()
            return
        with torch.cuda.device(self._device):
            if self._graph is None:
                self._graph = self._capture()
            self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Warm up on a side stream, as capture demands, then record."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._function()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._function()
        return graph
