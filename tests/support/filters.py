"""A filter that marks pictures at random, by their digest, and fails in requested ways; and how to install it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

SHARE = 0.3  # of the pictures that are marked


def is_marked(pixels: Any) -> bool:
    """Whether a picture, uint8 (H, W, 3), must not be seen."""
    return hashlib.sha256(bytes(pixels)).digest()[0] < 256 * SHARE


class Filter:
    """Refuses what is marked; what the file that RTEVO_TEST_FILTER names says goes wrong with every fifth picture."""

    version, threshold, reason = "1.2", 0.5, "it is marked"

    def __init__(self) -> None:
        name = os.environ.get("RTEVO_TEST_FILTER", "")
        self.way = Path(name).read_text() if name else ""

    def __call__(self, pixels: Any) -> float:
        digest = hashlib.sha256(bytes(pixels)).digest()
        ways = self.way.split()
        if ways and digest[1] % 5 == 0:
            way = ways[digest[2] % len(ways)]
            if way == "hang":
                time.sleep(3600)
            elif way == "die":
                os._exit(7)
            elif way == "raise":
                raise RuntimeError("the model is gone")
            elif way == "nan":
                return float("nan")
            elif way == "chatter":
                print("x" * 100_000)
        return 1.0 if is_marked(pixels) else 0.25


class Broken:
    """Cannot be loaded."""

    def __init__(self) -> None:
        raise OSError("no such model")


def install(folder: Path) -> None:
    """Make the filters entry points for processes with `folder` on their path."""
    info = folder / "rtevo_test_filters-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rtevo-test-filters\nVersion: 1.2\n")
    points = "[rtevo.filters]\nmarked-at-random = tests.support.filters:Filter\nbroken = tests.support.filters:Broken\n"
    (info / "entry_points.txt").write_text(points)
