"""Rings of tests have names that start with the test process's id, and nothing of them may be left."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
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


class Nursery:
    """Talks to a process that forks workers (see nursery.py)."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("nursery.py")
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )

    def send(self, *command: object) -> None:
        """Send a command without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> int:
        """Wait for the answer to the last command."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has died: see its traceback on standard error"
        return int(json.loads(line))

    def ask(self, *command: object) -> int:
        """Send a command, and wait for its answer."""
        self.send(*command)
        return self.answer()

    def check(self) -> None:
        """Fail where it has died."""
        assert self._process.poll() is None, "the nursery has died: see its traceback on standard error"

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def nursery() -> Iterator[Callable[[], Nursery]]:
    """Return a function that starts a nursery; all are ended after the test."""
    all_of_them: list[Nursery] = []

    def start() -> Nursery:
        all_of_them.append(Nursery())
        return all_of_them[-1]

    yield start
    for each in all_of_them:
        each.close()
