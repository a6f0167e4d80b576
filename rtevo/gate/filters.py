"""Filters, and the gate that asks all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rtevo import __version__
from rtevo.errors import ConfigError, DataError
from rtevo.gate.apart import Apart
from rtevo.gate.verdict import Finding, Verdict
from rtevo.latent import Avoid

__all__ = ["ENTRY_POINTS", "Filter", "Gate", "check_gate", "make_gate", "marked_picture"]

ENTRY_POINTS = "rtevo.filters"
_MARK_PX = 8  # edge of the squares of the marked picture


class Filter(Protocol):
    """Judges pictures; a context manager.

    Attributes
    ----------
    name, version : str
    """

    name: str
    version: str

    def judge(self, pixels: NDArray[np.uint8], embedding: NDArray[np.float32]) -> Finding:
        """Judge one picture, uint8 (H, W, 3), with its re-encoding, float32 (e,)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Avoided:
    """Refuse pictures whose re-encoding lies too near to the avoided embeddings.

    Parameters
    ----------
    avoid : Avoid
    """

    name, version = "avoid", __version__

    def __init__(self, avoid: Avoid) -> None:
        self._avoid = avoid

    def judge(self, pixels: NDArray[np.uint8], embedding: NDArray[np.float32]) -> Finding:
        """Judge a picture by its embedding."""
        distance = float(self._avoid.nearest(embedding[np.newaxis])[0])
        refused = not distance >= self._avoid.distance
        reason = f"cosine distance {distance:.3f} to an avoided picture, limit {self._avoid.distance:g}" if refused else ""
        return Finding(self.name, self.version, refused, distance, self._avoid.distance, reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class Marked:
    """Refuse the marked picture, with which a rehearsal tests the gate; see :func:`marked_picture`."""

    name, version = "marked", __version__

    def judge(self, pixels: NDArray[np.uint8], embedding: NDArray[np.float32]) -> Finding:
        """Compare a picture with the marked one of its size."""
        refused = np.array_equal(pixels, marked_picture(*pixels.shape[:2]))
        return Finding(self.name, self.version, refused, float(refused), 1.0, "the marked picture of a rehearsal" if refused else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


@lru_cache(4)
def marked_picture(height: int, width: int) -> NDArray[np.uint8]:
    """Return the picture that every gate refuses, uint8 (height, width, 3), read-only: magenta and black squares."""
    rows, columns = np.indices((height, width)) // _MARK_PX
    picture = np.zeros((height, width, 3), np.uint8)
    picture[(rows + columns) % 2 == 0] = (255, 0, 255)
    picture.setflags(write=False)
    return picture


class Gate:
    """Asks every filter about every picture; a context manager.

    Parameters
    ----------
    filters : sequence of Filter
    """

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = (Marked(), *filters)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # all filters, or none
            for each in self.filters:
                stack.enter_context(each)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def judge(self, pixels: NDArray[np.uint8], embedding: NDArray[np.float32]) -> Verdict:
        """Judge one picture.

        Parameters
        ----------
        pixels : ndarray, uint8 (H, W, 3)
        embedding : ndarray, float32 (e,)
            Re-encoding of the pixels.
        """
        return Verdict(tuple(each.judge(pixels, embedding) for each in self.filters))

    @property
    def description(self) -> str:
        """Names and versions of the filters, for the log."""
        return ", ".join(f"{each.name} {each.version}" for each in self.filters)


def make_gate(avoid: Avoid | None, checker: str, filters: Sequence[str], deadline_s: float, device: str = "cpu") -> Gate:
    """Return a session's gate.

    Parameters
    ----------
    avoid : Avoid, optional
    checker : str
        Folder of a CLIP safety checker; empty: none.
    filters : sequence of str
        Entry points of the group ``rtevo.filters``: NAME, or NAME=THRESHOLD.
    deadline_s : float
        Longest time for one filter and one picture, s.
    device : str
        Device for the safety checker.

    Raises
    ------
    ConfigError
        A filter is not installed, or the checker's folder is not a safety checker's.
    """
    made: list[Filter] = [] if avoid is None else [Avoided(avoid)]
    if checker:
        if not (Path(checker) / "config.json").is_file():
            raise ConfigError(f"[safety] checker: expected the folder of a CLIP safety checker (config.json, weights), got {checker!r}")
        made.append(Apart("checker", "rtevo.generate.checker:Checker", (checker, device), None, deadline_s))
    known = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    for wanted in filters:
        name, _, number = wanted.partition("=")
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                f"[safety] filters: expected a filter that is installed here ({there}), got {name!r} (entry point group {ENTRY_POINTS!r})"
            )
        try:
            threshold = float(number) if number else None
        except ValueError:
            threshold = math.nan
        if threshold is not None and not math.isfinite(threshold):
            raise ConfigError(f"[safety] filters: expected NAME or NAME=THRESHOLD, got {wanted!r}")
        made.append(Apart(name, known[name].value, (), threshold, deadline_s))
    return Gate(made)


def check_gate(gate: Gate, height: int, width: int, embedding: NDArray[np.float32]) -> list[Finding]:
    """Have every filter judge the marked picture once, and return their findings.

    Raises
    ------
    DataError
        The gate passed the marked picture, or a filter could not judge it.
    """
    found = gate.judge(marked_picture(height, width), embedding)
    if not found.refused:
        raise DataError("the gate passed the marked picture: its verdicts cannot be relied on")
    if failed := [f for f in found.findings if f.refused and math.isnan(f.value)]:
        raise DataError(f"filter {failed[0].name}: {failed[0].reason}")
    return list(found.findings)
