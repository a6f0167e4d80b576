"""How many slices a volume has, and which files make one, by where slices lie and how files are numbered."""

from __future__ import annotations

import math

__all__ = ["Places"]

SAME_STEP = 2  # places are rounded: how far two equal distances may be apart


class Places:
    """Learns the number of slices of a volume where no header says it, from series whose files are numbered volume after volume.

    Files at the same place are then a whole number of volumes apart, so the greatest common divisor of all such distances is a multiple
    of the number of files of a volume; and there are at most as many places as slices. Where the two meet, and a volume is complete, the
    number is known, whatever came first and whatever is missing.

    Attributes
    ----------
    slices : int or None
        Number of slices of a volume, None until it is known.
    streams : int
        How many streams (echoes, components) the numbers count through.
    offset : int
        Files before the first of a volume, where the numbers do not begin with a volume.
    """

    def __init__(self) -> None:
        self.slices: int | None = None
        self.streams = 1
        self.offset = 0
        self._first: dict[int, int] = {}  # number of the first file at each place
        self._files: dict[int, int] = {}  # place of each file
        self._step = 0  # greatest common divisor

    def add(self, number: int, place: int) -> bool:
        """Record the number (from 1) and place of a file; return whether this determines the number of slices."""
        self._files[number] = place
        self._step = math.gcd(self._step, number - self._first.setdefault(place, number))
        if self.slices is None and self._step == len(self._first) * self.streams > self.streams:
            self._settle(len(self._first))
        return self.slices is not None

    def volume(self, number: int) -> int:
        """Number of the volume (from 1) of a file, once the number of slices is known."""
        assert self.slices is not None
        return (number - 1 - self.offset) // (self.slices * self.streams) + 1

    def _settle(self, slices: int) -> None:
        """Set the number of slices if it divides the files into volumes of different places, one of which is complete."""
        offset = self._offset(slices)
        volumes: dict[int, list[int]] = {}
        for number, place in self._files.items():
            volumes.setdefault((number - 1 - offset) // (slices * self.streams), []).append(place)
        if all(len(set(places)) == len(places) for places in volumes.values()) and max(map(len, volumes.values())) == slices:
            self.slices, self.offset = slices, offset

    def _offset(self, slices: int) -> int:
        """Where volumes begin among the numbers: at 1, or where the lowest does not begin a volume at the one step that differs."""
        steps = {n % slices: self._files[n + 1] - place for n, place in self._files.items() if n + 1 in self._files}
        if self.streams > 1 or not steps or (min(self._files) - 1) % slices == 0:
            return 0
        usual = sorted(steps.values())[len(steps) // 2]
        unusual = [residue for residue, step in steps.items() if abs(step - usual) > SAME_STEP]
        return unusual[0] if len(unusual) == 1 and len(steps) == slices > 2 else 0
