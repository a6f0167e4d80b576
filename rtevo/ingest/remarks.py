"""What is said of a run's volumes as they are put together: the same thing once, and what follows upon itself in one line."""

from __future__ import annotations

import itertools
import re

import numpy as np
from numpy.typing import NDArray

__all__ = ["Remarks"]


class Remarks:
    """Names what is wrong with a run's volumes.

    Parameters
    ----------
    problems : list of str
        Takes what is said.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self._gaps: list[tuple[int, int, bool]] = []  # not yet named: index, slices that came, whether a damaged file is known
        self._refused = -1  # files after the first of which nothing tells the volume; -1 before that
        self._unlike: dict[str, list[tuple[int, str]]] = {}  # volumes that were left out, by what is wrong, numbers aside
        self._polarity = ""  # direction of phase encoding of the first volume that says it
        self._named: set[str] = set()
        self._beyond_s = 0.0  # latest slice time that no repetition holds

    def gap(self, index: int, came: int, known: bool) -> None:
        """Note a volume that is declared missing: how many of its slices came, and whether a damaged file of it did."""
        self._gaps.append((index, came, known))

    def name_gaps(self, slices: int | None) -> None:
        """Name the gaps, those that follow each other in one line: a run that ended early is one."""
        gaps, self._gaps = self._gaps, []
        for _, group in itertools.groupby(enumerate(gaps), lambda item: (item[1][0] - item[0], item[1][1] > 0, item[1][2])):
            indices, counts, known = zip(*(gap for _, gap in group), strict=True)
            which = f"volume {indices[0]}" if len(indices) == 1 else f"volumes {indices[0]} to {indices[-1]}"
            fewest, most = min(counts), max(counts)
            came = f"{most}" if most == fewest else f"{fewest} to {most}"
            self.problems.append(f"{which}: {came} of {slices} slices came" if most else f"{which}: never came{' whole' * known[0]}")

    def refused(self, text: str) -> None:
        """Name the first file of which nothing tells the volume, and count the others."""
        self._refused += 1
        if self._refused == 0:
            self.problems.append(text)

    def left_out(self, index: int, error: str) -> None:
        """Name a volume that is left out; others after it for the same reason are counted."""
        same = self._unlike.setdefault(re.sub(r"[0-9.]+", "#", error), [])
        same.append((index, error))
        if len(same) == 1:
            self.problems.append(f"volume {index}: {error}; left out")

    def polarity(self, index: int, found: set[str]) -> None:
        """Name a volume whose phase was encoded in another direction than before: it is distorted in another, too."""
        self._polarity = self._polarity or min(found, default="")
        if found - {self._polarity} and "polarity" not in self._named:
            self._named.add("polarity")
            self.problems.append(
                f"volume {index}: phase is encoded along {'/'.join(sorted(found))}, in the volumes before along {self._polarity}: two "
                "polarities in one run, whose distortions are opposite; the volumes of one of them should be left out"
            )

    def within(self, slice_times_s: NDArray[np.float64] | None, tr_s: float | None) -> NDArray[np.float64] | None:
        """Slice times where a repetition holds them, else none; :meth:`settle` names that once the repetition time is clear."""
        if slice_times_s is None:
            return None
        beyond = tr_s is not None and float(slice_times_s.max()) >= tr_s
        self._beyond_s = float(slice_times_s.max()) if beyond else 0.0
        return None if beyond else slice_times_s

    def settle(self, tr_s: float | None) -> None:
        """Name slice times that are beyond the repetition time."""
        if self._beyond_s and tr_s and "beyond" not in self._named:
            self._named.add("beyond")
            self.problems.append(
                f"slices were acquired up to {self._beyond_s:g} s after the first of their volume by its header, beyond the repetition "
                f"time of {tr_s:g} s: the slices' times are left out"
            )

    def end(self) -> None:
        """Say how often what was named once came again."""
        if self._refused > 0:
            self.problems.append(f"{self._refused} more files whose headers do not tell them from volumes that came before; left out")
            self._refused = 0
        for same in self._unlike.values():
            if len(same) > 1:
                which = f"{len(same) - 1} more volumes, {same[1][0]} to {same[-1][0]}" if len(same) > 2 else f"volume {same[1][0]}"
                self.problems.append(f"{which}: {same[1][1]}; left out")
        self._unlike.clear()
