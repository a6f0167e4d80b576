"""Samples in texts that are still being written: rows of numbers, and the logs of the Siemens physiological monitoring unit (PMU)."""

from __future__ import annotations

import re
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PMU", "Parser", "Pmu", "Rows"]

Array = NDArray[np.float64]
PMU = (".puls", ".resp", ".ecg", ".ext")
"""Names of the monitoring unit's logs end so."""
_LONGEST = 65536  # characters of a row or of a word
_SEPARATORS = re.compile(r"[\s,;]+")
_HEADER = 4  # numbers at the beginning of a PMU log
_INFO, _INFO_ENDS, _ENDS, _MARKS = 5002, 6002, 5003, 5000  # PMU: from here on numbers are no samples


class Parser(Protocol):
    """Turns pieces of a text into samples."""

    unreadable: int

    def feed(self, text: str) -> Array:
        """Add the next piece, return the samples that it completes, float64 (samples, channels)."""


class Rows:
    """One sample a row: numbers with blanks, tabs, commas or semicolons between. What is no such row is passed over; nan is a sample.

    Parameters
    ----------
    columns : tuple of int
        Those that are wanted, 1 = first.

    Attributes
    ----------
    unreadable : int
        Rows that were passed over.
    """

    def __init__(self, columns: tuple[int, ...]) -> None:
        self._columns, self._rest, self.unreadable = columns, "", 0

    def feed(self, text: str) -> Array:
        """See :class:`Parser`."""
        *rows, self._rest = (self._rest + text.replace("\r", "\n")).split("\n")
        if len(self._rest) > _LONGEST:
            self._rest, self.unreadable = "", self.unreadable + 1
        found = [values for row in rows if row.strip() and (values := self._row(row)) is not None]
        return np.array(found, np.float64).reshape(-1, len(self._columns))

    def _row(self, row: str) -> list[float] | None:
        words = _SEPARATORS.split(row.strip())
        try:
            return [float(words[column - 1]) for column in self._columns]
        except (ValueError, IndexError):
            self.unreadable += 1
            return None


class Pmu:
    """One channel of numbers in one long line, with marks between them: 5000 and 6000 (a beat or a pulse was seen, and has gone), what is
    said between 5002 and 6002, and 5003, after which there are only statistics.

    Parameters
    ----------
    marks : bool
        The marks are the channel: 1 from each 5000 to its 6000, else 0 (the scanner's pulses in a log of the external trigger).
    """

    def __init__(self, marks: bool = False) -> None:
        self._marks, self._rest, self._header, self._info, self._over, self._high = marks, "", 0, False, False, 0.0
        self.unreadable = 0

    def feed(self, text: str) -> Array:
        """See :class:`Parser`."""
        text = self._rest + text
        cut = max(text.rfind(blank) for blank in (" ", "\n", "\t")) + 1
        text, self._rest = text[:cut], text[cut:][-_LONGEST:]
        found: list[float] = []
        for word in text.split():
            value = int(word) if word.lstrip("-").isdecimal() and len(word) < 10 else None
            if value == _ENDS and not self._info:
                self._over = True
            if self._over:
                break
            if value in (_INFO, _INFO_ENDS):
                self._info = value == _INFO
            elif not self._info:
                self._take(value, found)
        return np.array(found, np.float64).reshape(-1, 1)

    def _take(self, value: int | None, found: list[float]) -> None:
        """Add a number that is not part of the text in between."""
        if value is None:
            self.unreadable += 1
        elif self._header < _HEADER:
            self._header += 1
        elif value % 1000 == 0 and value // 1000 in (5, 6):
            self._high = float(value == _MARKS)
        else:
            found.append(self._high if self._marks else float(value))
