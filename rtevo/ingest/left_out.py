"""Says what of a run is missing or left out: each kind once at first, and how often in the end."""

from __future__ import annotations

import itertools

__all__ = ["LeftOut"]


class LeftOut:
    """What did not become a volume.

    Parameters
    ----------
    problems : list of str
        Takes the words.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self._missed: list[tuple[int, int, bool]] = []  # gaps that are not yet named: index, slices that came, whether it is known of
        self._refused_named = False
        self._refused = 0  # files after the first of which nothing tells the volume
        self._unlike: dict[str, list[int]] = {}  # volumes whose geometry is not the run's, by what is wrong

    def refuse(self, name: str, numbers: dict[str, int], later: bool) -> None:
        """Name the first part of which nothing tells the volume, and count the others; `later`: it was acquired after all others."""
        if self._refused_named:
            self._refused += 1
            return
        self._refused_named = True
        hint = " (acquired later: was the run restarted under the same series? Its volumes are left out)" if later else ""
        self.problems.append(f"{name}: by its headers it is the same as an earlier volume ({numbers}){hint}; left out")

    def unlike(self, index: int, error: str) -> None:
        """Name the first volume whose geometry is wrong in this way, and count the others."""
        self._unlike.setdefault(error, []).append(index)
        if len(self._unlike[error]) == 1:
            self.problems.append(f"volume {index}: {error}; left out")

    def miss(self, index: int, came: int, known: bool) -> None:
        """Record a gap: how many slices of it came, and whether a damaged file of it did."""
        self._missed.append((index, came, known))

    def name_gaps(self, slices: int | None) -> None:
        """Name the volumes that were declared missing, those that follow each other in one line: a run that ended early is one."""
        missed, self._missed = self._missed, []
        for _, group in itertools.groupby(enumerate(missed), lambda item: (item[1][0] - item[0], item[1][1] > 0, item[1][2])):
            gaps = [gap for _, gap in group]
            (first, fewest, known), last = gaps[0], gaps[-1][0]
            most = max(came for _, came, _ in gaps)
            fewest = min(came for _, came, _ in gaps)
            which = f"volume {first}" if first == last else f"volumes {first} to {last}"
            came = f"{most}" if most == fewest else f"{fewest} to {most}"
            self.problems.append(f"{which}: {came} of {slices} slices came" if most else f"{which}: never came{' whole' * known}")

    def name_repeated(self) -> None:
        """Report how often an already reported problem came again."""
        if self._refused:
            self.problems.append(f"{self._refused} more files that by their headers are the same as earlier volumes; left out")
            self._refused = 0
        for error, indices in self._unlike.items():
            if len(indices) > 1:
                self.problems.append(f"{len(indices) - 1} more volumes, {indices[1]} to {indices[-1]}: {error}; left out")
        self._unlike.clear()
