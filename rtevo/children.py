"""The processes of a session as their supervisor sees them, and those that stay between the runs of a visit."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from rtevo.session.plan import Plan
from rtevo.stages.table import Stage

__all__ = ["Child", "Standing", "exit_reason", "let_go"]

LEAVE_S = 2.0  # for a process to exit at the end of a visit


@dataclass
class Child:
    """One running stage."""

    stage: Stage
    process: BaseProcess
    pipe: Connection
    ready: dict[str, Any] | None = None
    doing: str = ""  # its progress towards being ready
    done: bool = False
    stays: bool = False  # done, and available for the next run of the visit
    progress: dict[str, tuple[int, float]] = field(default_factory=dict)


def exit_reason(code: int) -> str:
    """Return how a process ended that sent no message."""
    if code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"exited with code {code} and sent no message"


def let_go(child: Child) -> None:
    """End a process, and close its pipe."""
    if child.process.is_alive():
        child.process.kill()
    child.process.join(5)
    child.pipe.close()


class Standing:
    """Processes that stay between the runs of a visit; a context manager that leaves none behind."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Standing:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            with suppress(OSError):  # it has just died
                child.pipe.send(None)
        for child in self._children.values():
            child.process.join(LEAVE_S)
            let_go(child)
        self._children = {}

    def add(self, child: Child) -> None:
        """Keep a process that has finished its work in a run."""
        self._children[child.stage.name] = child

    def take(self, stage: Stage, plan: Plan) -> Child | None:
        """Start a kept process on the next run, and return it; None if there is none."""
        child = self._children.pop(stage.name, None)
        if child is None:
            return None
        if child.process.is_alive():
            with suppress(OSError):  # it has just died
                child.pipe.send(plan)
                return Child(stage, child.process, child.pipe)
        let_go(child)
        return None
