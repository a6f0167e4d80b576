"""The process of one filter: ``python -m rtevo.gate.worker MODULE:CLASS [ARGUMENT ...]``.

A filter is a class. It is made without arguments and called with each picture, uint8 (H, W, 3); it returns a number: the higher, the worse.
Pictures with a number above ``threshold`` are refused, because of ``reason``. ``version`` goes into the session's log::

    class Filter:
        version, threshold, reason = "1.0", 0.5, "looks like a spider"

        def __init__(self):
            self.model = load_my_model()

        def __call__(self, pixels):
            return self.model.probability(pixels)

The filter's package lists it in ``pyproject.toml`` (``[project.entry-points."rtevo.filters"]``, ``spiders = "my_package:Filter"``), and
the session file names it: ``[safety] filters = ["spiders"]``, or ``["spiders=0.7"]`` for another threshold.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import queue
import sys
import threading
from typing import Any, BinaryIO

import numpy as np

__all__ = ["main"]

MOST_BYTES = 1 << 28  # of a picture
WARM_PX = 64  # edge of the black picture that a filter judges before it is ready


def _read(pictures: queue.Queue[np.ndarray[Any, np.dtype[np.uint8]]], pipe: BinaryIO) -> None:
    """Read pictures from the pipe; at its end the parent has gone, and this process exits, whatever the filter does."""
    while line := pipe.readline():
        height, width, depth = json.loads(line)
        size = height * width * depth
        data = pipe.read(size) if 0 < size <= MOST_BYTES else b""
        if len(data) != size or not size:
            break
        pictures.put(np.frombuffer(data, np.uint8).reshape(height, width, depth))
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Load the filter, and answer until the pipe ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a filter's own output must not reach the answers

    def say(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    pictures: queue.Queue[np.ndarray[Any, np.dtype[np.uint8]]] = queue.Queue()
    threading.Thread(target=_read, args=(pictures, sys.stdin.buffer), daemon=True).start()
    try:
        module, _, name = arguments[0].partition(":")
        judge = getattr(importlib.import_module(module), name)(*arguments[1:])
        threshold, reason = float(judge.threshold), str(getattr(judge, "reason", "refused"))
        if not math.isfinite(threshold):
            raise ValueError(f"threshold: expected a finite number, got {threshold}")
        judge(np.zeros((WARM_PX, WARM_PX, 3), np.uint8))  # the first picture takes longest
        say(version=str(getattr(judge, "version", "")), threshold=threshold, reason=reason)
    except Exception as problem:
        say(error=f"{type(problem).__name__}: {problem}")
        return
    while True:
        try:
            say(value=float(judge(pictures.get())))
        except Exception as problem:
            say(error=f"{type(problem).__name__}: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
