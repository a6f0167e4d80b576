"""Which of the series that arrive is the run: the one that was asked for, or the one that looks functional."""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rtevo.ingest.assembly import Assembler, Outcome
from rtevo.ingest.dicom import DicomFile
from rtevo.ingest.header import Likeness, SeriesHeader
from rtevo.ingest.parts import Part
from rtevo.ingest.split import SplitRuns

__all__ = ["Selection", "Stream", "StreamKey", "matches"]


class StreamKey(NamedTuple):
    """One component and echo of a series: what makes one run."""

    uid: str
    component: str
    te_ms: float


OFF_BEAT = 0.1  # of the repetition time: how far a volume in a series of its own may be from a multiple of it


@dataclass(eq=False)
class Stream:
    """What arrived of one component and echo of a series."""

    key: StreamKey
    series: SeriesHeader
    echo: int
    te_ms: float
    assembler: Assembler
    likeness: Likeness
    why: str
    first_s: float
    files: set[str] = field(default_factory=set)

    @property
    def label(self) -> str:
        """Series, and component and echo where they are not the usual ones."""
        parts = [self.series.label]
        if self.key.component != "M":
            parts.append({"P": "phase", "R": "real part", "I": "imaginary part"}[self.key.component])
        if self.echo > 1:
            parts.append(f"echo {self.echo}")
        return ", ".join(parts)


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


class Selection:
    """Sorts arriving files into streams and settles on the one that is the run.

    Parameters
    ----------
    pattern : str or None
        The series that was asked for (see :func:`matches`); None takes what looks functional.
    patience_s : float
        How long a gap is waited for, and how long a better stream than a doubtful one.
    first : int or None
        See :class:`Assembler`.
    """

    def __init__(self, pattern: str | None, *, patience_s: float, first: int | None) -> None:
        self.pattern = pattern
        self.chosen: Stream | None = None
        self.streams: dict[StreamKey, Stream] = {}
        self.problems: list[str] = []
        self._patience_s = patience_s
        self._first = first
        self._before: set[str] = set()  # series that are not taken
        self._still: set[str] = set()  # those of them that still grow
        self._bases: dict[str, tuple[SeriesHeader, float]] = {}  # of each series: its header and its first volume's time
        self._counted: dict[str, dict[int, StreamKey] | None] = {}  # of each series: who has an instance number, None where several do
        self._family: dict[str, str] = {}  # series -> the one of which it holds a further volume
        self._split = SplitRuns()
        self._numbered: dict[str, int | None] = {}  # the first series number that came with each UID
        self._advised = False

    def add(self, file: DicomFile, part: Part, closed_ns: int, now_s: float, name: str) -> str:
        """Take one part of a file; returns its :class:`Outcome`. Parts of other streams than the chosen one are only counted."""
        file = self._told_apart(file)
        part = self._place(file, part)
        stream = self._stream(file, part, now_s)
        stream.files.add(name)
        self._share_numbers(file, stream)
        if stream.key.uid in self._before and stream.key.uid not in self._still:
            self._still.add(stream.key.uid)
            self.problems.append(
                f"{stream.label}: files still come, but it was there before the session, and is not taken unless it is named by number"
            )
        if self.chosen not in (None, stream):
            return Outcome.NEW
        if self._rank(stream) > 1:
            part = replace(part, pixels=None)
        return stream.assembler.add(file, part, closed_ns, now_s, name)

    def expect(self, file: DicomFile) -> None:
        """Note the volumes of a damaged file, whose header is there."""
        file = self._told_apart(file)
        for part in file.parts:
            stream = self.streams.get(self._key(file, part))
            if stream is not None and self.chosen in (None, stream):
                stream.assembler.expect(part)

    def in_run(self, file: DicomFile) -> bool:
        """Whether a file belongs to the chosen stream."""
        file = self._told_apart(file)
        return self.chosen is not None and any(self._key(file, part) == self.chosen.key for part in file.parts)

    def index_of(self, file: DicomFile) -> int | None:
        """The first volume of the run that a file's headers name."""
        indices = [self.chosen.assembler.index_of(part) for part in file.parts] if self.chosen else []
        return min((index for index in indices if index is not None), default=None)

    def pass_over(self) -> list[str]:
        """Take none of the series that came so far; returns their labels."""
        self._before = {stream.key.uid for stream in self.streams.values()}
        for stream in self.streams.values():
            stream.assembler = Assembler(stream.series, patience_s=math.inf)  # lets its volumes go
        return list(dict.fromkeys(stream.series.label for stream in self.streams.values()))

    def settle(self, now_s: float, *, final: bool = False) -> None:
        """Choose the run's stream if that can be done now."""
        if self.chosen is not None:
            return
        ready = [stream for stream in self.streams.values() if self._ready(stream, now_s, final)]
        if not ready:
            return
        ready.sort(key=lambda s: (self._rank(s), -s.assembler.volumes, _number(s.series), s.key.te_ms))
        self.chosen = ready[0]
        for other in ready[1:]:
            self._name_rival(other)
        for stream in self.streams.values():
            if stream is not self.chosen:
                stream.assembler = Assembler(stream.series, patience_s=math.inf)  # lets its pictures go

    def told(self) -> str:
        """Which stream was chosen, and why; empty where none is yet."""
        if self.chosen is None:
            return ""
        stream, series = self.chosen, self.chosen.series
        tr = f", TR {series.tr_s:g} s" if series.tr_s else ""
        why = f"it is '{self.pattern}'" if self.pattern is not None else f"it looks functional: {stream.why}"
        if self.pattern is None and stream.likeness != Likeness.FUNCTIONAL:
            why = f"nothing looks more functional ({stream.why})"
        return f"{stream.label} ({series.vendor} {series.kind}{tr}): {why}"

    def explain(self) -> str:
        """Why no stream was chosen."""
        if not self.streams:
            return "no DICOM pictures"
        found = "; ".join(
            f"{stream.label} ({stream.series.vendor} {stream.series.kind}, {len(stream.files)} files: {self._why_not(stream)})"
            for stream in self.streams.values()
        )
        wanted = "looks functional" if self.pattern is None else f"is '{self.pattern}'"
        return f"no series in it {wanted}; found {found}"

    def _told_apart(self, file: DicomFile) -> DicomFile:
        """Give a series an identifier of its own where another number came with the same one before (some anonymisers do that)."""
        series = file.series
        first = self._numbered.setdefault(series.uid, series.number)
        if series.number is None or first is None or series.number == first:
            return file
        return replace(file, series=replace(series, uid=f"{series.uid}#{series.number}"))

    def _key(self, file: DicomFile, part: Part) -> StreamKey:
        uid = self._family.get(file.series.uid, file.series.uid)
        return StreamKey(uid, part.component, round(part.te_ms, 2) or float(part.echo))

    def _share_numbers(self, file: DicomFile, stream: Stream) -> None:
        """Find out whether instance numbers count through all echoes and components of a series, or through each."""
        uid, instance = stream.key.uid, file.identity[2]
        siblings = [other for other in self.streams.values() if other.key.uid == uid]
        counted = self._counted.setdefault(uid, {})
        if instance is not None and counted is not None and counted.setdefault(instance, stream.key) != stream.key:
            counted = self._counted[uid] = None  # two have the same number
        for other in siblings:
            other.assembler.share(1 if counted is None else len(siblings))

    def _place(self, file: DicomFile, part: Part) -> Part:
        """Find the run of which a series holds a single volume (some XA exports give every volume a series of its own).

        Such a volume is numbered by its acquisition time where no number in its header tells it from the others.
        """
        series = file.series
        if series.kind == "slices":
            uid, part = self._split.place(series, part, self._before)
            if uid != series.uid:
                self._family[series.uid] = uid
            return part
        if series.vendor != "Siemens" or not series.tr_s or not math.isfinite(part.acquired_s):
            return part
        if series.uid not in self._bases:
            self._bases[series.uid] = (series, part.acquired_s)
            family = next((uid for uid in self._bases if uid != series.uid and self._continues(series, part.acquired_s, uid)), None)
            if family is not None:
                self._family[series.uid] = family
        begin_s = self._bases[self._family.get(series.uid, series.uid)][1]
        if series.uid not in self._family and part.acquired_s != begin_s:
            return part
        return replace(part, numbers={**part.numbers, "moment": round((part.acquired_s - begin_s) / series.tr_s) + 1})

    def _continues(self, series: SeriesHeader, acquired_s: float, uid: str) -> bool:
        """Whether a series holds a further volume of the run that began as another one.

        Both have the same name and protocol, the first holds one file, and as many series lie between them as repetition times, or more.
        """
        begun, begin_s = self._bases[uid]
        if uid in self._before or uid in self._family or series.number is None or begun.number is None or not series.tr_s:
            return False
        if replace(series, uid=begun.uid, number=begun.number) != begun:
            return False
        if sum(len(stream.files) for stream in self.streams.values() if stream.key.uid == uid) != 1 + self._members(uid):
            return False
        steps = (acquired_s - begin_s) / series.tr_s
        number = series.number - begun.number
        return abs(steps - round(steps)) < OFF_BEAT and 1 <= abs(round(steps)) <= abs(number) and (steps > 0) == (number > 0)

    def _members(self, uid: str) -> int:
        return sum(family == uid for family in self._family.values())

    def _why_not(self, stream: Stream) -> str:
        if stream.key.uid in self._before:
            return "was there before"
        if self.pattern is None and stream.likeness == Likeness.POSSIBLE and stream.assembler.volumes < 2:
            return f"{stream.why}, and one volume only"
        return stream.why if self.pattern is None else "another name"

    def _stream(self, file: DicomFile, part: Part, now_s: float) -> Stream:
        key = self._key(file, part)
        stream = self.streams.get(key)
        if stream is None:
            likeness, why = file.series.likeness(part.component, part.echo)
            assembler = Assembler(file.series, patience_s=self._patience_s, first=self._first)
            stream = Stream(key, file.series, part.echo, part.te_ms, assembler, likeness, why, now_s)
            self.streams[key] = stream
            if self.chosen is not None:
                self._name_rival(stream)
        return stream

    def _rank(self, stream: Stream) -> int:
        """0: taken at once; 1: taken where nothing better comes; 2: not taken."""
        if stream.key.uid in self._before:
            return 2
        if self.pattern is None:
            return int(stream.likeness)
        if not matches(stream.series, self.pattern):
            return 2
        return int(stream.key.component != "M" or stream.echo > 1)

    def _ready(self, stream: Stream, now_s: float, final: bool) -> bool:
        rank = self._rank(stream)
        if rank == 1:
            several = stream.assembler.volumes > 1 or self.pattern is not None
            return several and (final or now_s - stream.first_s >= self._patience_s)
        return rank == 0

    def _name_rival(self, other: Stream) -> None:
        """Say that another stream could have been the run."""
        if self.chosen is None or self._rank(other) > 0 or other.key.uid == self.chosen.key.uid:
            return
        series = self.chosen.series
        fullest = max(self.chosen.assembler.volumes, other.assembler.volumes)
        if series.vendor == "Siemens" and series.kind == other.series.kind == "slices" and fullest < 2:
            if not self._advised and (series.volumes or 2) > 1:
                self._advised = True
                self.problems.append(
                    f"{other.label} and {self.chosen.label} hold one volume each, with a file for every slice, and nothing tells their "
                    "order (an 'interoperability' export?): have the scanner export the run as mosaics or in the enhanced form"
                )
            return
        names = (self.chosen.series.description, self.chosen.series.protocol)
        if (other.series.description, other.series.protocol) == names and _number(other.series) > _number(self.chosen.series):
            self.problems.append(
                f"{other.label} has the name of the run, {self.chosen.label}, of which {self.chosen.assembler.volumes} volumes came: was "
                "it started again? The run stays as it was (name the series to choose another)"
            )
            return
        self.problems.append(f"{other.label} could be the run too; the run is {self.chosen.label} (name the series to choose another)")


def _number(series: SeriesHeader) -> float:
    return math.inf if series.number is None else series.number
