"""How fit a series is to be the run: by what was asked for, and by what it looks like."""

from __future__ import annotations

import fnmatch
import re
from enum import IntEnum

from rtevo.ingest.header import Likeness, SeriesHeader

__all__ = ["Rank", "is_number", "matches", "rank"]


def is_number(pattern: str) -> bool:
    """Whether a series is asked for by its number or UID, so that it is one and no other."""
    return re.fullmatch(r"[\d.]+(#\d+)?", pattern) is not None


def matches(series: SeriesHeader, pattern: str) -> bool:
    """Whether a series is the one that a user named.

    Parameters
    ----------
    series : SeriesHeader
        A series.
    pattern : str
        Its number, its UID, or text that its description or protocol name holds or matches (``*`` and ``?`` stand for any text and
        any character; upper and lower case are the same).
    """
    if pattern.isdigit():
        return series.number == int(pattern)
    if pattern == series.uid:
        return True
    wanted = pattern.lower() if any(c in pattern for c in "*?[") else f"*{pattern.lower()}*"
    return any(fnmatch.fnmatchcase(text.lower(), wanted) for text in (series.description, series.protocol))


class Rank(IntEnum):
    """How fit a stream is to be the run; the lowest is taken."""

    AT_ONCE = 0
    WHERE_NOTHING_BETTER = 1  # comes, after a while
    LAST = 2  # it bears the name that was asked for, but is what scanners make beside or of a run
    NEVER = 3


def rank(series: SeriesHeader, component: str, echo: int, pattern: str | None) -> Rank:
    """Return how well a stream fits as the run: the one rule, for sessions as for ``python -m rtevo.ingest``.

    A number or UID names one series, whatever it is; a name is also borne by what the scanner makes of the run: single-band references,
    series corrected for motion, maps, phase, logs of physiology. Those are taken last, unless their own word is part of the pattern.

    Parameters
    ----------
    series : SeriesHeader
    component, echo
        As for :meth:`rtevo.ingest.header.SeriesHeader.likeness`.
    pattern : str or None
        See :func:`matches`.
    """
    likeness, _ = series.likeness(component, echo)
    if pattern is None:
        return Rank.NEVER if likeness == Likeness.UNLIKELY else Rank(int(likeness))
    if not matches(series, pattern):
        return Rank.NEVER
    beside = component != "M" or echo > 1
    if is_number(pattern):
        return Rank.WHERE_NOTHING_BETTER if beside else Rank.AT_ONCE
    if series.made_beside(pattern) or component != "M":
        return Rank.LAST
    return Rank.WHERE_NOTHING_BETTER if beside or series.volumes == 1 else Rank.AT_ONCE
