"""Rings of tests have names that start with the test process's id, and nothing of them may be left."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_counter = itertools.count()


@pytest.fixture
def ring_name() -> Iterator[Callable[[], str]]:
    """Return a function that makes up names of rings; checks that nothing with such a name is left in /dev/shm afterwards."""
    prefix = f"rtevo-t{os.getpid()}-{next(_counter)}"
    numbers = itertools.count()
    yield lambda: f"/{prefix}-{next(numbers)}"
    left = [path.name for path in Path("/dev/shm").glob(f"*{prefix}-*")]
    for name in left:
        Path("/dev/shm", name).unlink()
    assert not left, f"left in /dev/shm: {left}"
