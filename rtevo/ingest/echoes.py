"""The echoes of each volume brought together: a volume goes on when all of them are there, and is missing when one is.

What remains of a volume whose echo is lost is not used: another combination of echoes has another contrast, so that its signal would
step as no response does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rtevo.ingest.volume import Volume
from rtevo.records import VolumeFlag

__all__ = ["EchoJoin"]

KEPT = 8  # volumes declared missing whose echoes are kept, in case the others come after all


@dataclass(eq=False)
class _Joining:
    """The echoes of one volume that came, by number."""

    echoes: dict[int, Volume] = field(default_factory=dict)
    since_s: float = 0.0  # when the first of them came
    declared: bool = False

    def whole(self, count: int) -> bool:
        """Whether all echoes are there."""
        return len(self.echoes) == count and not any(echo.flags & VolumeFlag.MISSING for echo in self.echoes.values())


class EchoJoin:
    """Joins the volumes of several echoes.

    Parameters
    ----------
    echoes : int
        How many are wanted.
    patience_s : float
        How long the other echoes of a volume are waited for after its first.
    """

    def __init__(self, echoes: int, patience_s: float) -> None:
        self._count, self._patience_s = echoes, patience_s
        self._joining: dict[int, _Joining] = {}
        self._next = 0
        self._lost = 0
        self.problems: list[str] = []

    @property
    def held(self) -> int:
        """Volumes of which some echoes came, and that are not passed on."""
        return sum(not joining.declared for joining in self._joining.values())

    def add(self, echo: int, volumes: Sequence[Volume], now_s: float) -> None:
        """Take volumes of one echo, 0 = first."""
        for volume in volumes:
            joining = self._joining.get(volume.index)
            if joining is None and volume.index < self._next:
                continue  # of a volume that was passed on, or of which nothing is kept
            if joining is None:
                joining = self._joining[volume.index] = _Joining(since_s=now_s)
            joining.echoes[echo] = volume

    def advance(self, now_s: float, *, final: bool = False) -> list[Volume]:
        """Return the volumes that can be passed on, in run order; late ones first."""
        out = [self._joined(index, VolumeFlag.LATE) for index in sorted(self._joining) if index < self._next and self._is_whole(index)]
        while self._joining and self._next <= max(self._joining):
            joining = self._joining.get(self._next)
            if joining is not None and joining.whole(self._count):
                out.append(self._joined(self._next, VolumeFlag.OK))
            elif joining is not None and (final or len(joining.echoes) == self._count or now_s - joining.since_s >= self._patience_s):
                out.append(self._missing(self._next, joining))
            else:
                break
            self._next += 1
        declared = [index for index, joining in self._joining.items() if joining.declared]
        for index in sorted(declared)[:-KEPT]:
            del self._joining[index]
        if final and self._lost > 1:
            self.problems.append(f"{self._lost} volumes are missing because echoes of them are")
        return out

    def _is_whole(self, index: int) -> bool:
        return self._joining[index].whole(self._count)

    def _joined(self, index: int, flags: VolumeFlag) -> Volume:
        echoes = [volume for _, volume in sorted(self._joining.pop(index).echoes.items())]
        first, files = echoes[0], tuple(dict.fromkeys(name for echo in echoes for name in echo.files))
        for number, echo in enumerate(echoes[1:], 2):
            if difference := first.grid.difference(echo.grid):
                self.problems.append(f"volume {index}: echo {number} does not lie where the first one does: {difference}; it is missing")
                return replace(first, data=None, flags=VolumeFlag.MISSING, files=files)
        pictures = [echo.data for echo in echoes if echo.data is not None]
        data = np.stack(pictures) if len(pictures) == len(echoes) else None
        return replace(first, data=data, closed_ns=max(echo.closed_ns for echo in echoes), flags=flags, files=files)

    def _missing(self, index: int, joining: _Joining) -> Volume:
        """Declare a volume missing, and say which echoes are where others came."""
        joining.declared = True
        there = [echo for echo, volume in joining.echoes.items() if not volume.flags & VolumeFlag.MISSING]
        if there:
            self._lost += 1
            gone = ", ".join(str(echo + 1) for echo in range(self._count) if echo not in there)
            self.problems.append(f"volume {index}: echo {gone} of {self._count} is missing, and so is the volume")
        one = next(iter(joining.echoes.values()))
        files = tuple(dict.fromkeys(name for volume in joining.echoes.values() for name in volume.files))
        return replace(one, data=None, closed_ns=0, flags=VolumeFlag.MISSING, files=files)
