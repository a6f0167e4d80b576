"""The echoes of each volume brought together: a volume goes on when all of them are there, and is missing when one is.

What remains of a volume whose echo is lost is not used: another combination of echoes has another contrast, so that its signal would
step as no response does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rtevo.ingest.assembly import Assembler
from rtevo.ingest.volume import Volume
from rtevo.records import VolumeFlag

if TYPE_CHECKING:
    from rtevo.ingest.selection import Stream, StreamKey

__all__ = ["EchoJoin", "RunEchoes"]

FEW_PATIENCES = 3  # patiences after which it is said that echoes have not come at all
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
        Number of echoes to combine.
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
        """Add volumes of one echo, 0 = first."""
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
            self.problems.append(f"{self._lost} volumes are missing because one of their echoes is missing")
        return out

    def _is_whole(self, index: int) -> bool:
        return self._joining[index].whole(self._count)

    def _joined(self, index: int, flags: VolumeFlag) -> Volume:
        echoes = [volume for _, volume in sorted(self._joining.pop(index).echoes.items())]
        first, files = echoes[0], tuple(dict.fromkeys(name for echo in echoes for name in echo.files))
        for number, echo in enumerate(echoes[1:], 2):
            if difference := first.grid.difference(echo.grid):
                self.problems.append(f"volume {index}: echo {number} lies elsewhere than the first: {difference}; volume missing")
                return replace(first, data=None, flags=VolumeFlag.MISSING, files=files)
        pictures = [echo.data for echo in echoes if echo.data is not None]
        data = np.stack(pictures) if len(pictures) == len(echoes) else None
        return replace(first, data=data, closed_ns=max(echo.closed_ns for echo in echoes), flags=flags, files=files)

    def _missing(self, index: int, joining: _Joining) -> Volume:
        """Declare a volume missing, and report the missing echoes if others came."""
        joining.declared = True
        there = [echo for echo, volume in joining.echoes.items() if not volume.flags & VolumeFlag.MISSING]
        if there:
            self._lost += 1
            gone = ", ".join(str(echo + 1) for echo in range(self._count) if echo not in there)
            self.problems.append(f"volume {index}: echo {gone} of {self._count} is missing, so the volume counts as missing")
        one = next(iter(joining.echoes.values()))
        files = tuple(dict.fromkeys(name for volume in joining.echoes.values() for name in volume.files))
        return replace(one, data=None, closed_ns=0, flags=VolumeFlag.MISSING, files=files)


class RunEchoes:
    """The streams that make the run: the chosen one, or all echoes that are combined, and their volumes.

    Parameters
    ----------
    echoes : int
        Number of echoes that are combined; 1: the chosen stream is the run.
    patience_s : float
        See :class:`EchoJoin`.

    Attributes
    ----------
    joined : list of Stream
        Those that are combined, the shortest echo first; empty before all have begun, and where one is the run.
    """

    def __init__(self, echoes: int, patience_s: float) -> None:
        self.joined: list[Stream] = []
        self._echoes, self._patience_s = echoes, patience_s
        self._join, self._few = EchoJoin(echoes, patience_s), False

    def begin_again(self) -> None:
        """Another stream was chosen."""
        self.joined, self._join = [], EchoJoin(self._echoes, self._patience_s)

    def holds(self, key: StreamKey, chosen: StreamKey) -> bool:
        """Whether a stream is of the run whose chosen one has the other key."""
        if self.joined:
            return any(key == stream.key for stream in self.joined)
        return key == chosen if self._echoes == 1 else key[:2] == chosen[:2]

    def held(self, run: Sequence[Stream]) -> int:
        """Volumes of the run that are begun or whole, and neither passed on nor declared missing."""
        return sum(stream.assembler.held for stream in run) + self._join.held

    def advance(self, run: Sequence[Stream], now_s: float, final: bool, problems: list[str]) -> list[Volume]:
        """Return the volumes of the run that can be passed on now; see :meth:`rtevo.ingest.assembly.Assembler.advance`.

        Fewer streams than echoes are waited for; after a while the run's volumes are missing until the others come.
        """
        if self._echoes == 1:
            return run[0].assembler.advance(now_s, final=final) if run else []
        if not self.joined and len(run) >= self._echoes:
            self.joined = list(run[: self._echoes])
            for stream in run[self._echoes :]:
                stream.assembler = Assembler(stream.series, patience_s=math.inf)  # lets its pictures go
        if not self.joined and not (run and (final or now_s - run[0].first_s >= FEW_PATIENCES * self._patience_s)):
            return []
        if not self.joined and not self._few:
            self._few = True
            problems.append(f"{run[0].label}: expected {self._echoes} echoes of each volume ([acquisition] echoes), found {len(run)}")
        for number, stream in enumerate(self.joined or run):
            self._join.add(number, stream.assembler.advance(now_s, final=final), now_s)
        volumes = self._join.advance(now_s, final=final)
        problems += self._join.problems
        self._join.problems.clear()
        return volumes

    def sidecar(self, run: Sequence[Stream], volume: Volume) -> dict[str, Any]:
        """What the headers say of the run that a volume is of; of several echoes their times (s) as well."""
        if not run:
            return {}
        said = run[0].series.sidecar(run[0].te_ms, volume.slice_times_s)
        return said if self._echoes == 1 else {**said, "EchoTimes": [round(stream.te_ms / 1000, 6) for stream in run]}

    @property
    def told(self) -> str:
        """Which echoes are combined; empty where one is the run."""
        return f", echoes of {', '.join(f'{stream.te_ms:g}' for stream in self.joined)} ms combined" if self.joined else ""

    @property
    def combined(self) -> bool:
        """Whether several echoes make the run."""
        return self._echoes > 1

    @property
    def waiting(self) -> bool:
        """Whether echoes are combined and have not all begun."""
        return self.combined and not self.joined
