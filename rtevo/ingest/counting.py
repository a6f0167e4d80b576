"""What instance numbers count, where more than one thing is possible: found out from the files themselves."""

from __future__ import annotations

import itertools

__all__ = ["Blocks", "Steps"]

VOLUMES = 3  # that must agree before instance numbers are held to count slices
SAME_PLACE = 1  # places are rounded: how far the same one may be from itself


class Blocks:
    """Whether instance numbers can count volumes fastest: then the files of each block of numbers lie at one place.

    Parameters
    ----------
    volumes : int or None
        Number of volumes that the header announces: length of a block.
    """

    def __init__(self, volumes: int | None) -> None:
        self.possible = bool(volumes)
        self._volumes = volumes or 1
        self._places: dict[int, int] = {}

    def add(self, instance: int, place: int) -> bool:
        """Note a file; returns whether it is the one that rules it out."""
        block = (instance - 1) // self._volumes
        if not self.possible or abs(self._places.setdefault(block, place) - place) <= SAME_PLACE:
            return False
        self.possible = False
        return True


class Steps:
    """Whether instance numbers count slices, in steps of one number, while acquisition numbers count volumes (3D sequences)."""

    def __init__(self) -> None:
        self.stepped = False
        self._counts: set[tuple[int, int]] = set()

    def add(self, instance: int, acquisition: int) -> bool:
        """Note a volume's numbers; returns whether it is the one that shows it."""
        if self.stepped or len(self._counts) >= VOLUMES:
            return False
        self._counts.add((instance, acquisition))
        pairs = itertools.pairwise(sorted(self._counts))
        ratios = {(b[0] - a[0]) / (b[1] - a[1]) if b[1] > a[1] else 0.0 for a, b in pairs}
        step = ratios.pop() if len(self._counts) == VOLUMES and len(ratios) == 1 else 0.0
        self.stepped = step > 1 and step == int(step)
        return self.stepped
