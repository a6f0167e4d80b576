"""Which of the series that arrive is the run: the one that was asked for, or the one that looks functional."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rtevo.ingest.assembly import Assembler
from rtevo.ingest.dicom import DicomFile
from rtevo.ingest.echoes import RunEchoes
from rtevo.ingest.gate import MOST_HELD, Gate
from rtevo.ingest.header import Likeness, SeriesHeader
from rtevo.ingest.parts import Part
from rtevo.ingest.ranking import Rank, rank
from rtevo.ingest.split import SplitRuns
from rtevo.ingest.volume import Outcome

__all__ = ["Selection", "Stream", "StreamKey"]


class StreamKey(NamedTuple):
    """One component and echo of a series: what makes one run."""

    uid: str
    component: str
    te_ms: float


LAST_PATIENCES = 3  # patiences that the last choice waits for something better
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
    acquired_s: float = math.nan  # of its first part, by the scanner's clock
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
    confirm : bool
        See :class:`Assembler`.
    replaceable : callable, optional
        Whether a doubtful stream that was chosen may still give way to a better one that begins now.
    gate : Gate, optional
        Nothing is chosen before it is open, and nothing that came too early.
    echoes : int
        So many echoes of each volume make the run, the shortest ones; 1: the stream that is chosen is the run.
    """

    def __init__(
        self,
        pattern: str | None,
        *,
        patience_s: float,
        first: int | None,
        confirm: bool = False,
        replaceable: Callable[[], bool] = lambda: False,
        gate: Gate | None = None,
        echoes: int = 1,
    ) -> None:
        self.pattern = pattern
        self.echoes = RunEchoes(echoes, patience_s)
        self.chosen: Stream | None = None
        self.streams: dict[StreamKey, Stream] = {}
        self.problems: list[str] = []
        self._patience_s = patience_s
        self._first = first
        self._confirm, self._replaceable, self._gate = confirm, replaceable, gate
        self._held: set[str] = set()  # series that are named as held before the trigger
        self._strangers: set[str] = set()  # studies that are named
        self._before: set[str] = set()  # series that are not taken
        self._before_numbers: dict[StreamKey, list[dict[str, int]]] = {}
        self._still: set[str] = set()  # those of them that still grow
        self._bases: dict[str, tuple[SeriesHeader, float]] = {}  # of each series: its header and its first volume's time
        self._counted: dict[str, dict[int, StreamKey] | None] = {}  # of each series: who has an instance number, None where several do
        self._family: dict[str, str] = {}  # series -> the one of which it holds a further volume
        self._split = SplitRuns()
        self._numbered: dict[str, int | None] = {}  # the first series number that came with each UID
        self._advised = False

    def add(self, file: DicomFile, part: Part, closed_ns: int, now_s: float, name: str) -> str:
        """Add one part of a file; return its :class:`Outcome`. Parts of other streams than the chosen one are only counted."""
        file = self._told_apart(file)
        part = self._place(file, part)
        stream = self._stream(file, part, now_s)
        stream.files.add(name)
        self._share_numbers(file, stream)
        if stream.key.uid in self._before and _given(part.numbers) in self._before_numbers.get(stream.key, []):
            self._revive(stream)
        if stream.key.uid in self._before and stream.key.uid not in self._still:
            self._still.add(stream.key.uid)
            self.problems.append(
                f"{stream.label}: files still come, but the series existed before the session: it is used only if named by number"
            )
        self._see_diffusion(stream, file.series, part)
        if self.chosen is not None and not self.of_run(stream) and not self._may_follow(stream):
            return Outcome.NEW
        if self.pattern is None and stream.likeness == Likeness.UNLIKELY:
            part = replace(part, pixels=None)
        outcome = stream.assembler.add(file, part, closed_ns, now_s, name)
        if outcome == Outcome.REFUSED and stream.assembler.begin_again(part.acquired_s):
            stream.assembler.problems[-1:] = [
                f"{stream.label}: the series was restarted before any of its volumes was used; its earlier volumes are left out"
            ]
            outcome = stream.assembler.add(file, part, closed_ns, now_s, name)
        return outcome

    def replace(self, file: DicomFile, closed_ns: int, name: str) -> list[int]:
        """Read a file again that changed after it was used; return the volumes of the run passed on with its earlier contents."""
        passed = []
        for part in file.parts:
            stream = self.streams.get(self._key(file, part))
            if stream is not None and (self.chosen is None or self.of_run(stream)):
                index = stream.assembler.replace(file, self._place(file, part), closed_ns, name)
                passed += [index] if index is not None and self.of_run(stream) else []
        return passed

    def _see_diffusion(self, stream: Stream, series: SeriesHeader, part: Part) -> None:
        """A diffusion series shows in its later volumes: the first is not weighted."""
        if series.b_value > 0 and stream.likeness != Likeness.UNLIKELY:
            stream.likeness, stream.why = series.likeness(part.component, part.echo)
            stream.series = replace(stream.series, b_value=series.b_value)
            if stream is self.chosen:
                self.problems.append(f"{stream.label} is the run, though {stream.why} (name the series to choose another)")

    def _may_follow(self, stream: Stream) -> bool:
        """Whether a stream may still become the run in place of the one that was chosen."""
        together = [s for s in self.streams.values() if s.key[:2] == stream.key[:2]] if self.echoes.combined else [stream]
        return self.chosen is not None and min(map(self._rank, together)) < self._rank(self.chosen) and self._replaceable()

    def expect(self, file: DicomFile) -> None:
        """Record the volumes of a damaged file with a readable header."""
        file = self._told_apart(file)
        for part in file.parts:
            stream = self.streams.get(self._key(file, part))
            if stream is not None and (self.chosen is None or self.of_run(stream)):
                stream.assembler.expect(part)

    def in_run(self, file: DicomFile) -> bool:
        """Whether a file belongs to the chosen stream."""
        file = self._told_apart(file)
        return any(self._key_of_run(self._key(file, part)) for part in file.parts)

    def of_run(self, stream: Stream) -> bool:
        """Whether a stream is the chosen one, or another echo of it that is combined with it."""
        return self._key_of_run(stream.key)

    def _key_of_run(self, key: StreamKey) -> bool:
        return self.chosen is not None and self.echoes.holds(key, self.chosen.key)

    @property
    def run(self) -> list[Stream]:
        """The streams of the run, the shortest echo first."""
        return sorted(filter(self.of_run, self.streams.values()), key=lambda stream: stream.key.te_ms)

    def index_of(self, file: DicomFile) -> int | None:
        """The first volume of the run that a file's headers name."""
        indices = [self.chosen.assembler.index_of(part) for part in file.parts] if self.chosen else []
        return min((index for index in indices if index is not None), default=None)

    def pass_over(self, known: Iterable[str] = ()) -> list[str]:
        """Exclude the series that came so far, and those of these UIDs; return the labels of those that came."""
        self._before = {*known, *(stream.key.uid for stream in self.streams.values())}
        self._before_numbers = {key: list(map(_given, stream.assembler.numbers())) for key, stream in self.streams.items()}
        for stream in self.streams.values():
            stream.assembler = Assembler(stream.series, patience_s=math.inf)  # lets its volumes go
        return list(dict.fromkeys(stream.series.label for stream in self.streams.values()))

    def wants(self, file: DicomFile) -> bool:
        """Whether a file's pixels may be those of the run."""
        keys = [self._key(file, part) for part in file.parts]
        if self.chosen is not None and not self._replaceable():
            return any(map(self._key_of_run, keys)) or file.series.uid not in {key.uid for key in self.streams}
        ranks = [rank(file.series, part.component, part.echo, self.pattern) for part in file.parts]
        return any(each < Rank.LAST for each in ranks)

    def was_before(self, file: DicomFile) -> bool:
        """Whether a file is of a series that was there before, and is not taken."""
        return any(self._key(file, part).uid in self._before for part in file.parts)

    def knows(self, file: DicomFile) -> bool:
        """Whether anything came of a file's series before."""
        return file.series.uid in self._numbered

    def was_there(self, file: DicomFile, now_s: float) -> None:
        """Record a file that existed before :meth:`pass_over`: its series is not used."""
        file = self._told_apart(file)
        for part in file.parts:
            self._before.add(self._key(file, part).uid)
            key = self._stream(file, part, now_s).key
            self._before_numbers.setdefault(key, []).append(_given(part.numbers))

    def _revive(self, stream: Stream) -> None:
        """A volume comes a second time of a series that was there before: the run was started again under its name."""
        self._before.discard(stream.key.uid)
        self._bases.pop(stream.key.uid, None)
        stream.files.clear()
        stream.assembler = Assembler(stream.series, patience_s=self._patience_s, first=self._first, confirm=self._confirm)
        told = "existed before the session, and is restarted under the same identifier: volumes from now on count"
        self.problems.append(f"{stream.label}: {told}")

    def settle(self, now_s: float, *, final: bool = False) -> None:
        """Choose the run's stream if that can be done now; a doubtful one may give way to a better one that begins."""
        if self._gate is not None and self._gate.trigger_s is None and not final and not self._opens(now_s, self._gate):
            return
        if self.chosen is not None and (final or self._rank(self.chosen) == Rank.AT_ONCE or not self._replaceable()):
            return
        found = [s for s in self.streams.values() if self._ready(s, now_s, final) and (self.chosen is None or self._may_follow(s))]
        if not found:
            return
        found.sort(key=lambda s: (self._rank(s), s.likeness, -s.assembler.volumes, self._age(s), _number(s.series), s.key.te_ms))
        before, self.chosen = self.chosen, found[0]
        doubtful = [before] if before else [s for s in self.streams.values() if self._waited(s)]
        for other in doubtful:
            why = f"it looks more functional ({self.chosen.why}; the other: {other.why})"
            self.problems.append(f"{other.label} came first, but {self.chosen.label} is the run: {why}")
        self._name_early()
        for other in found[1:]:
            self._name_rival(other)
        self.echoes.begin_again()
        for stream in self.streams.values():
            if not self.of_run(stream):
                stream.assembler = Assembler(stream.series, patience_s=math.inf)  # lets its pictures go

    def _opens(self, now_s: float, gate: Gate) -> bool:
        """Whether the trigger has been; until then, name what comes."""
        if gate.is_open():
            for stream in self.streams.values():
                stream.first_s = max(stream.first_s, now_s)  # something better is waited for from now on
            return True
        for stream in self.streams.values():
            uid, volumes = stream.key.uid, stream.assembler.volumes
            if uid not in self._held and self._rank(stream) < Rank.NEVER and volumes:
                self._held.add(uid)
                self.problems.append(f"{stream.label}: comes before the trigger; its volumes are held and judged when the trigger comes")
            if uid not in self._before and volumes > MOST_HELD:
                self._before.add(uid)
                self._still.add(uid)
                stream.assembler = Assembler(stream.series, patience_s=math.inf)  # lets its volumes go
                self.problems.append(f"{stream.label}: {volumes} volumes came before the trigger: another run, not used")
        return False

    @property
    def before_trigger(self) -> int:
        """Volumes of a series that may be the run and that are held until there is a trigger."""
        if self._gate is None or self._gate.is_open():
            return 0
        held = [stream.assembler.volumes for stream in self.streams.values() if self._rank(stream) < Rank.NEVER]
        return max(held, default=0)

    def _early(self, stream: Stream) -> list[int]:
        """Volumes of a stream that came too early to be of the run that the trigger began."""
        return self._gate.early(stream.assembler.begun(), stream.series.tr_s) if self._gate else []

    def _name_early(self) -> None:
        """Report the series that began before the trigger: those left out, and the one used nevertheless."""
        for stream in self.streams.values():
            if stream.key.uid in self._before or not (early := self._early(stream)):
                continue
            volumes = f"volume {early[0]}" if len(early) == 1 else f"{len(early)} volumes from {early[0]} on"
            what = f"{stream.label}: {volumes} came too early for this trigger"
            if stream is self.chosen:
                self.problems.append(f"{what}, and more follow: it is used as the run; the trigger was probably missed: onsets are wrong")
            else:
                self.problems.append(f"{what}: the late end of another run, not used")

    @property
    def doubtful(self) -> bool:
        """Whether the chosen stream may still give way to a better one."""
        return self.chosen is not None and self._rank(self.chosen) > Rank.AT_ONCE and self._replaceable()

    def told(self) -> str:
        """Which stream was chosen, and why; empty where none is yet, or echoes of it have not come that are combined."""
        if self.chosen is None or self.echoes.waiting:
            return ""
        stream, series = self.chosen, self.chosen.series
        tr = f", TR {series.tr_s:g} s" if series.tr_s else ""
        why = f"it is '{self.pattern}'" if self.pattern is not None else f"it looks functional: {stream.why}"
        if self.pattern is None and stream.likeness != Likeness.FUNCTIONAL:
            why = f"nothing looks more functional ({stream.why})"
        return f"{stream.label} ({series.vendor} {series.kind}{tr}{self.echoes.told}): {why}"

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
        """Give a series an identifier of its own if another number came with the same one before (some anonymisers do that)."""
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
            return "existed before the session"
        if self.pattern is None and stream.likeness == Likeness.POSSIBLE and stream.assembler.volumes < 2:
            return f"{stream.why}, and one volume only"
        return stream.why if self.pattern is None else "another name"

    def _stream(self, file: DicomFile, part: Part, now_s: float) -> Stream:
        key = self._key(file, part)
        stream = self.streams.get(key)
        if stream is None:
            likeness, why = file.series.likeness(part.component, part.echo)
            assembler = Assembler(file.series, patience_s=self._patience_s, first=self._first, confirm=self._confirm)
            stream = Stream(key, file.series, part.echo, part.te_ms, assembler, likeness, why, now_s, part.acquired_s)
            self.streams[key] = stream
            if self.chosen is not None:
                self._name_rival(stream)
        return stream

    def _rank(self, stream: Stream) -> Rank:
        if stream.key.uid in self._before:
            return Rank.NEVER
        early = stream is not self.chosen and self._gate is not None and bool(self._early(stream))
        if early and self._gate is not None and not self._gate.goes_on(stream.assembler.begun(), stream.series.tr_s):
            return Rank.NEVER
        return rank(stream.series, stream.key.component, stream.echo, self.pattern)

    def _age(self, stream: Stream) -> float:
        """How long ago a stream was acquired, from any moment: of two that begin after the trigger the older is left from another run."""
        return -stream.acquired_s if self._gate is not None and math.isfinite(stream.acquired_s) else 0.0

    def _waited(self, stream: Stream) -> bool:
        """Whether a stream of another series came before the chosen one, and was waiting for something better to come."""
        if self.chosen is None or stream.key.uid == self.chosen.key.uid:
            return False
        came = list(self.streams)
        return self._rank(stream) in (Rank.WHERE_NOTHING_BETTER, Rank.LAST) and came.index(stream.key) < came.index(self.chosen.key)

    def _ready(self, stream: Stream, now_s: float, final: bool) -> bool:
        """Whether a stream can be taken now, if there is no better one."""
        rank = self._rank(stream)
        if rank == Rank.NEVER or not stream.files:
            return False
        several = stream.assembler.volumes > 1 or (self.pattern is not None and rank == Rank.WHERE_NOTHING_BETTER)
        waits_s = {Rank.AT_ONCE: -math.inf, Rank.WHERE_NOTHING_BETTER: self._patience_s, Rank.LAST: LAST_PATIENCES * self._patience_s}[rank]
        if rank == Rank.AT_ONCE or (final and (several or rank == Rank.LAST)):
            return True
        return several and not final and now_s - stream.first_s >= waits_s

    def _name_rival(self, other: Stream) -> None:
        """Report that another stream could have been the run."""
        if self.chosen is None or self._rank(other) != Rank.AT_ONCE or other.key.uid == self.chosen.key.uid or self._may_follow(other):
            return
        series = self.chosen.series
        fullest = max(self.chosen.assembler.volumes, other.assembler.volumes)
        if series.vendor == "Siemens" and series.kind == other.series.kind == "slices" and fullest < 2:
            if not self._advised and (series.volumes or 2) > 1:
                self._advised = True
                self.problems.append(
                    f"{other.label} and {self.chosen.label} hold one volume each, with a file for every slice, and nothing shows their "
                    "order (an 'interoperability' export?): have the scanner export the run as mosaics or in the enhanced form"
                )
            return
        if other.series.study_uid != self.chosen.series.study_uid and other.series.kind != "nifti":
            if other.series.study_uid not in self._strangers:
                self._strangers.add(other.series.study_uid)
                self.problems.append(
                    f"{other.label} is of another study than the run, {self.chosen.label} (another participant?): not used"
                )
            return
        names = (self.chosen.series.description, self.chosen.series.protocol)
        if (other.series.description, other.series.protocol) == names and _number(other.series) > _number(self.chosen.series):
            self.problems.append(
                f"{other.label} has the name of the run, {self.chosen.label}, of which {self.chosen.assembler.volumes} volumes came: was "
                "the run restarted? The session keeps the first (name the series to choose another)"
            )
            return
        self.problems.append(f"{other.label} could also be the run; used is {self.chosen.label} (name the series to choose another)")


def _given(numbers: dict[str, int]) -> dict[str, int]:
    """Numbers that the header gives; a moment is counted from the first that came."""
    return {name: number for name, number in numbers.items() if name != "moment"}


def _number(series: SeriesHeader) -> float:
    return math.inf if series.number is None else series.number
