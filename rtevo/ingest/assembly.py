"""Puts the parts of one series together: volumes in the order of their headers, each once, and gaps where one never comes.

Nothing here reads files or clocks, so that every way of delivery (a watched folder, a network receiver) shares it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import GeometryError
from rtevo.ingest.alike import MAX_MOVED_MM, Alike
from rtevo.ingest.dicom import DicomFile
from rtevo.ingest.geometry import normal_of, slice_order, volume_grid
from rtevo.ingest.header import SeriesHeader
from rtevo.ingest.layout import Layout
from rtevo.ingest.left_out import LeftOut
from rtevo.ingest.parts import Part
from rtevo.ingest.places import Places
from rtevo.ingest.volume import Gap, Outcome, Volume
from rtevo.ingest.watch import Watch
from rtevo.records import Grid, VolumeFlag

__all__ = ["Assembler"]

LARGEST_GAP = 500  # volumes; a number further off is a damaged header
LARGEST_START = 500  # volumes that may be missing at the start of a run; numbers that begin further up have another origin
SAME_PLACE_MM = 0.1  # slices nearer to each other than this are at the same place
SETTLED_VOLUMES = 4  # after so many it is clear how far apart volumes are
STEPS = 3  # volumes that must agree before instance numbers are held to count slices
MOST_VOTES = 8  # volumes that are asked about the grid


@dataclass(eq=False)
class _Piece:
    """A part that was taken. Its pictures are let go once the volume is passed on; the rest stays, to know copies by."""

    numbers: dict[str, int]
    place: int
    name: str
    closed_ns: int
    file: DicomFile | None
    part: Part | None
    index: int = -1


@dataclass(eq=False)
class _Building:
    """A volume that is not yet passed on."""

    pieces: dict[int, _Piece] = field(default_factory=dict)  # by place
    whole: bool = False
    grew_s: float = 0.0


class Assembler:
    """Volumes of one stream (one component and echo of a series).

    Parameters
    ----------
    series : SeriesHeader
        The series.
    patience_s : float
        How long a missing volume is waited for once a later one is whole.
    first : int or None
        Number that the headers give the run's first volume; None: the lowest that is found.
    confirm : bool
        Pass nothing on before two volumes agree about the grid, or `patience_s` has passed: a first one that was cut short then does
        not fix it. Without it the first volume is passed on at once, and only later ones are if it was wrong.
    """

    def __init__(self, series: SeriesHeader, *, patience_s: float, first: int | None = 1, confirm: bool = False) -> None:
        self.series = series
        self.problems: list[str] = []
        self.acquired_from = ""  # where the volumes' acquisition times come from
        self._patience_s = patience_s
        self._first = first
        self._fields: list[str] = []  # what may number the volumes, best first
        self._taken: dict[str, set[tuple[int, int]]] = {}
        self._pieces: list[_Piece] = []
        self._known: set[tuple[object, ...]] = set()
        self._building: dict[int, _Building] = {}  # by index
        self._next = 0
        self._owed: list[Gap] = []  # gaps before the first whole volume, from which the grid is known
        self._passed: set[int] = set()
        self._expected: set[int] = set()  # indices of files that came damaged
        self._slices = series.slices
        self._places = Places()
        self._undecided: list[_Piece] = []  # slices of which nothing tells the volume until it is known how many a volume has
        self._share = 1
        self._confirm = confirm and series.kind != "mosaic" and series.slices is None  # their headers say how many slices there are
        self._agreed = False  # two volumes lie on the run's grid
        self._watch = Watch(series.tr_s, self.problems)
        self._alike, self._left_out = Alike(self.problems), LeftOut(self.problems)
        self.again_s = math.inf  # when the run was begun again under this series: what was acquired from then on is refused
        self._blocks: dict[int, int] | None = {}  # place of the files of each block of instance numbers, None once several share one
        self._counts: set[tuple[int, int]] = set()  # instance and acquisition number of the first volumes
        self._joined = series.kind != "slices"  # slices are numbered by their moments only where several series make the run
        self._stepped = False  # instance numbers count slices: acquisition numbers count volumes

    @property
    def grid(self) -> Grid | None:
        """Shape and RAS+ affine of the run's volumes; None before the first."""
        return self._alike.grid

    @property
    def tr_s(self) -> float | None:
        """Repetition time in seconds: the header's, or what the volumes' times of acquisition say against it."""
        return self._watch.tr_s

    @property
    def held(self) -> int:
        """Volumes that are begun or whole, and neither passed on nor declared missing."""
        return sum(index >= self._next for index in self._building)

    @property
    def volumes(self) -> int:
        """Volumes of which at least one part came."""
        return len(self._building) + len(self._passed)

    def add(self, file: DicomFile, part: Part, closed_ns: int, now_s: float, name: str) -> str:
        """Add one part; return what became of it (:class:`Outcome`).

        Parameters
        ----------
        file, part : DicomFile, Part
            A file and one of its parts.
        closed_ns : int
            When the file was closed by its writer.
        now_s : float
            Time on any steady clock, seconds.
        name : str
            The file's name in :attr:`Volume.files` and in messages.
        """
        place = 0 if part.ordered or len(part.frames) > 1 else self._place(file, part)
        identity = (*file.identity, file.checksum, place, *part.numbers.items())
        if identity in self._known:
            return Outcome.DUPLICATE
        piece = _Piece(dict(part.numbers), place, name, closed_ns, file, part)
        if part.acquired_s >= self.again_s:  # its number may be a further one than the run came to
            self._refuse(piece)
            return Outcome.REFUSED
        if not self._joined and set(part.numbers) == {"moment"}:
            self._joined = True
            if self._pieces:
                self._fields = ["moment", *(f for f in self._fields if f != "moment")]
                self._retake()
            self._undecided = [waiting for waiting in self._undecided if not self._take(waiting, now_s)]
        self._check_interleaved(piece, file.identity[2], now_s)
        self._learn_step(piece.numbers)
        if not self._take(piece, now_s):
            if self._slices is not None or "file" not in piece.numbers:
                self._refuse(piece)
                return Outcome.REFUSED
            self._undecided.append(piece)
        self._known.add(identity)
        if self._slices is None and "file" in part.numbers and self._places.add(part.numbers["file"], place):
            self._count_slices(now_s)
        return Outcome.NEW

    def _check_interleaved(self, piece: _Piece, instance: int | None, now_s: float) -> None:
        """Drop instance numbers that would count volumes fastest if the slices of one such block lie at several places."""
        if "interleaved" not in piece.numbers or not self.series.volumes or instance is None:
            return
        if self._blocks is not None and self._share == 1:
            block = (instance - 1) // self.series.volumes
            if abs(self._blocks.setdefault(block, piece.place) - piece.place) > 1 and not self._passed:
                self._blocks = None
                self._without_interleaved(now_s)
        if self._blocks is None:
            del piece.numbers["interleaved"]

    def _without_interleaved(self, now_s: float) -> None:
        """Number what came so far anew without the instance numbers that count volumes fastest."""
        pieces, self._pieces = [*self._pieces, *self._undecided], []
        self._building, self._undecided, self._taken = {}, [], {}
        for piece in pieces:
            piece.numbers.pop("interleaved", None)
            if not self._take(piece, now_s):
                self._undecided.append(piece)

    def _learn_step(self, numbers: dict[str, int]) -> None:
        """Find whether instance numbers count slices, in steps of one number, while acquisition numbers count volumes (3D sequences)."""
        if self.series.kind == "slices" or self._stepped or self._share > 1 or len(self._counts) >= STEPS:
            return
        if "instance" not in numbers or "acquisition" not in numbers:
            return
        self._counts.add((numbers["instance"], numbers["acquisition"]))
        counts = sorted(self._counts)
        steps = {(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(counts)}
        ratios = {n / m if m > 0 else 0.0 for n, m in steps}
        if len(counts) == STEPS and len(ratios) == 1 and (ratio := ratios.pop()) > 1 and ratio == int(ratio):
            self._stepped = True
            if self._pieces:
                self._retake()

    def share(self, streams: int) -> None:
        """Set the number of streams (echoes, components) of the series through which the instance numbers count."""
        if streams != self._share:
            self._share = self._places.streams = streams
            if self._pieces:
                self._retake()

    def _take(self, piece: _Piece, now_s: float) -> bool:
        """Add a part to its volume; False if nothing shows which one that is."""
        if not self._number(piece):
            return False
        self._pieces.append(piece)
        building = self._building.setdefault(piece.index, _Building())
        building.pieces[piece.place] = piece
        building.grew_s = now_s
        self._see_whether_whole(building)
        return True

    def _count_slices(self, now_s: float) -> None:
        """It is known how many slices a volume has: give those that waited for it their volumes."""
        self._slices = self._places.slices
        if self._undecided:
            self._fields = ["file", *(f for f in self._fields if f != "file")]
            self._retake()
        for building in self._building.values():
            self._see_whether_whole(building)
        undecided, self._undecided = self._undecided, []
        for piece in undecided:
            if not self._take(piece, now_s):
                self._refuse(piece)

    def _retake(self) -> None:
        """Number the volumes that are not passed on anew, because their numbers mean something else now."""
        chosen = next((f for f in self._fields if all(self._value(f, piece.numbers) is not None for piece in self._pieces)), None)
        if chosen is None:
            return
        if not self._passed:
            self._first = min(n for piece in self._pieces if (n := self._value(chosen, piece.numbers)) is not None)
            if not self._places.offset and self._first <= LARGEST_START:
                self._first = min(self._first, 1)
        self._taken = {f: {(n, p.place) for p in self._pieces if (n := self._value(f, p.numbers)) is not None} for f in self._fields}
        self._renumber(chosen)

    def _value(self, name: str, numbers: dict[str, int]) -> int | None:
        """Number of a part's volume by one header field."""
        number = numbers.get(name)
        if name == "file" and number is not None:
            number = self._places.volume(number) if self._places.slices else None
        if name == "moment" and not self._joined:
            return None
        if name == "instance" and self._stepped:
            number = numbers.get("acquisition")
        elif name == "instance" and number is not None:
            number = (number - 1) // self._share + 1
        return number if number is None or number >= 0 or name == "moment" else None  # which may count from any volume of the run

    def index_of(self, part: Part) -> int | None:
        """Position in the run that a part's headers give it; None where they do not tell."""
        name = self._fields[0] if self._fields else next(iter(part.numbers), "")
        return self._index(self._value(name, part.numbers))

    def expect(self, part: Part) -> None:
        """Note that a volume was sent although its file is damaged: it is a gap unless another copy comes."""
        index = self.index_of(part)
        if index is not None:
            self._expected.add(index)

    def advance(self, now_s: float, *, final: bool = False) -> list[Volume]:
        """The volumes that can be passed on now, in run order; late ones follow as they become whole.

        Parameters
        ----------
        now_s : float
            Time on the clock of :meth:`add`.
        final : bool
            Whether nothing more will come: what is missing is declared missing.
        """
        self._learn_slices(now_s, final)
        out: list[Volume] = []
        if not self._agreed and not self._agree(now_s, final):
            return out
        for index in sorted(i for i, b in self._building.items() if i < self._next and b.whole):
            late = self._pass_on(index, VolumeFlag.LATE)
            if isinstance(late, Volume):  # else it stays the gap that it was
                self._emit(out, late)
        last = self._last_known(final)
        while self._next <= last:
            building = self._building.get(self._next)
            if building and building.whole:
                self._emit(out, self._pass_on(self._next, VolumeFlag.OK))
            elif final or self._waited_s(now_s) >= self._patience_s:
                self._emit(out, self._declare_gap(self._next))
            else:
                break
            self._next += 1
        self._left_out.name_gaps(self._slices)
        if final or len(self._passed) > SETTLED_VOLUMES:
            self._watch.settle()
            self._alike.settle(self.tr_s)
        if final:
            self._watch.end()
            self._left_out.name_repeated()
            if self.grid is None:
                self.problems.append(f"{self.series.label}: none of its volumes is whole")
        return out

    def _emit(self, out: list[Volume], volume: Volume | Gap) -> None:
        """Add a volume, or a gap as soon as the run's grid is known."""
        if isinstance(volume, Volume):
            out.append(volume)
        else:
            self._owed.append(volume)
        if self.grid is not None:
            tr_s, flags = self.tr_s, VolumeFlag.MISSING
            gaps = [Volume(gap.index, None, self.grid, tr_s, math.nan, 0, flags, gap.files) for gap in self._owed]
            self._owed = []
            at = len(out) - isinstance(volume, Volume)  # before the volume from which the grid is known
            out[at:at] = gaps

    def _agree(self, now_s: float, final: bool) -> bool:
        """Find the grid that two volumes agree about; returns whether volumes can be passed on."""
        whole = sorted(index for index, building in self._building.items() if building.whole)
        found: list[tuple[int, Grid, NDArray[np.float64]]] = []
        if self._alike.grid is not None and self._alike.positions is not None:
            found.append((-1, self._alike.grid, self._alike.positions))  # it was passed on
        for index in whole[: MOST_VOTES - len(found)]:
            with contextlib.suppress(GeometryError):
                layout = self._layout(self._building[index])
                found.append((index, layout.grid, layout.positions))
        pairs = itertools.combinations(found, 2)
        agreed = next((one for one, other in pairs if not one[1].difference(other[1], MAX_MOVED_MM)), None)
        if agreed is None:
            alone = len(found) < 2 and (not self._confirm or not whole or now_s - self._building[whole[0]].grew_s >= self._patience_s)
            return final or alone or len(whole) >= MOST_VOTES
        self._agreed = True
        if agreed[0] >= 0 and self.grid is not None:
            difference = agreed[1].difference(self.grid, MAX_MOVED_MM)
            self.problems.append(f"the first volume lies elsewhere than all later ones, which are used: {difference}")
        if agreed[0] >= 0:
            self._alike.grid, self._alike.positions = agreed[1:]
        return True

    @property
    def agreed(self) -> bool:
        """Whether two volumes lie on the run's grid, so that it stands."""
        return self._agreed

    @property
    def last(self) -> int:
        """Highest index of a volume that was begun or passed on, -1 before any."""
        return max((*self._building, *self._passed), default=-1)

    def conflict(self, grid: Grid) -> str:
        """Return how a grid differs from the run's, as far as that is known; empty if it does not."""
        known = self.grid
        if known is None:
            first = min((index for index, building in self._building.items() if building.whole), default=None)
            known = None if first is None else self._layout(self._building[first]).grid
        return "" if known is None else known.difference(grid, MAX_MOVED_MM)

    def numbers(self) -> list[dict[str, int]]:
        """What the headers gave as the volumes' numbers, of every part."""
        return [piece.numbers for piece in (*self._pieces, *self._undecided)]

    def begun(self) -> dict[int, float]:
        """When the last part so far of each volume that is not passed on came, on the clock of :meth:`add`, by the volume's index."""
        return {index: building.grew_s for index, building in self._building.items()}

    def replace(self, file: DicomFile, part: Part, closed_ns: int, name: str) -> int | None:
        """Replace the part of a file that changed after it was read.

        Returns
        -------
        int or None
            Index of the volume where that was passed on already; None where the part was replaced, or is not known.
        """
        piece = next((p for p in self._pieces if p.name == name and p.numbers == part.numbers), None)
        if piece is None:
            return None
        if piece.part is None or piece.index in self._passed:
            return piece.index
        piece.file, piece.part, piece.closed_ns = file, part, closed_ns
        return None

    def begin_again(self, acquired_s: float) -> bool:
        """Drop everything, because the run was restarted; return whether that was possible: no volume had been passed on.

        Parameters
        ----------
        acquired_s : float
            When the part that begins it again was acquired.
        """
        last_s = max((piece.part.acquired_s for piece in self._pieces if piece.part is not None), default=math.nan)
        if self._passed or self._next or not acquired_s > last_s + (self.series.tr_s or 0.0) / 2:
            return False
        self._fields, self._taken, self._pieces, self._building, self.again_s = [], {}, [], {}, math.inf
        self._known, self._expected, self._undecided, self._places = set(), set(), [], Places()
        self._slices = self.series.slices
        return True

    def _place(self, file: DicomFile, part: Part) -> int:
        """Where a slice lies along the normal, in steps."""
        return round(float(part.positions[0] @ normal_of(file.orientation)) / SAME_PLACE_MM)

    def _index(self, number: int | None) -> int | None:
        """Position in the run of the volume with this number, None where the number cannot be right."""
        if number is None:
            return None
        if (
            self._first is not None
            and not self._pieces
            and number - self._first >= min(self.series.volumes or LARGEST_START, LARGEST_START)
        ):
            self.problems.append(f"{self.series.label}: its volumes are numbered from about {number}; the lowest counts as the first")
            self._first = None
        if self._first is None or (number < self._first <= number + LARGEST_GAP and self._next == 0):
            self._rebase(number)
        assert self._first is not None
        index = number - self._first
        furthest = max((self._next, *self._building))
        return index if 0 <= index <= furthest + LARGEST_GAP else None

    def _rebase(self, first: int) -> None:
        """Count the run from a lower number than so far, before anything was passed on."""
        shift = 0 if self._first is None else self._first - first
        self._first = first
        if shift:
            self._building = {index + shift: building for index, building in self._building.items()}
            self._expected = {index + shift for index in self._expected}
            for piece in self._pieces:
                piece.index += shift

    def _number(self, piece: _Piece) -> bool:
        """Assign a part to its volume, by the best header field that assigns a volume to every part so far."""
        numbers = piece.numbers
        if not self._pieces:
            self._fields = list(numbers)
            self._taken = {name: set() for name in self._fields}
        values = {f: value for f in self._fields if (value := self._value(f, numbers)) is not None}
        alive = [f for f, value in values.items() if (value, piece.place) not in self._taken[f]]
        for chosen in alive:
            index = self._index(values[chosen])
            if index is None or index in self._passed or not self._agrees(chosen):
                continue
            if chosen != self._fields[0]:
                self._renumber(chosen)
            self._fields = [chosen, *(f for f in alive if f != chosen)]
            piece.index = index
            for f in self._fields:
                self._taken[f].add((values[f], piece.place))
            return True
        return False

    def _refuse(self, piece: _Piece) -> None:
        """Leave out a part of which nothing tells the volume."""
        later = piece.part is not None and self.series.tr_s and piece.part.acquired_s - self._watch.last_s > self.series.tr_s / 2
        name = self._fields[0] if self._fields else ""
        if later and piece.part is not None and (self._value(name, piece.numbers), piece.place) in self._taken.get(name, ()):
            self.again_s = min(self.again_s, piece.part.acquired_s)
        self._left_out.refuse(piece.name, piece.numbers, bool(later))

    def _agrees(self, chosen: str) -> bool:
        """Whether a header field gives the volumes that were passed on the numbers that they had."""
        if chosen == self._fields[0]:
            return True
        return all(self._index(self._value(chosen, p.numbers)) == p.index for p in self._pieces if p.index in self._passed)

    def _renumber(self, chosen: str) -> None:
        """Number the volumes that are not passed on by another header field."""
        old, self._building = self._building, {}
        for before in old.values():
            for piece in before.pieces.values():
                index = self._index(self._value(chosen, piece.numbers))
                if index is None:
                    continue
                piece.index = index
                building = self._building.setdefault(index, _Building(grew_s=before.grew_s))
                building.pieces[piece.place] = piece
                building.grew_s = max(building.grew_s, before.grew_s)
                self._see_whether_whole(building)

    def _see_whether_whole(self, building: _Building) -> None:
        if self.series.kind != "slices":
            building.whole = True
        elif self._slices is not None:
            building.whole = len(building.pieces) >= self._slices

    def _learn_slices(self, now_s: float, final: bool) -> None:
        """Where no header says how many slices a volume has: as many as the fullest, once it stopped growing."""
        if final:
            undecided, self._undecided = self._undecided, []
            alone = not self._pieces and len({piece.place for piece in undecided}) == len(undecided)
            for piece in undecided:
                if alone:  # every slice at a place of its own: one volume
                    piece.numbers = {"alone": 1}
                if not alone or not self._take(piece, now_s):
                    self._refuse(piece)
        if self._slices is not None or self.series.kind != "slices" or not self._building:
            return
        if final and len(self._building) == 1 and self._next == 0 and self._fields[0] == "acquisition" and not self._expected:
            number = self._value("acquisition", self._pieces[0].numbers)  # one for all files: it may count anything
            if number is not None:
                self._rebase(number)
        fullest = max(self._building.values(), key=lambda b: len(b.pieces))
        if final or (len(self._building) > 1 and now_s - fullest.grew_s >= self._patience_s):
            self._slices = len(fullest.pieces)
            for building in self._building.values():
                self._see_whether_whole(building)

    def _last_known(self, final: bool) -> int:
        """Index up to which volumes can be passed on or declared missing."""
        if final:
            return max((*self._building, *self._expected), default=-1)
        return max((index for index, building in self._building.items() if building.whole), default=-1)

    def _waited_s(self, now_s: float) -> float:
        """How long a later volume than the next one has been whole."""
        return now_s - min((b.grew_s for i, b in self._building.items() if i > self._next and b.whole), default=math.inf)

    def _declare_gap(self, index: int) -> Gap:
        building = self._building.get(index)
        self._left_out.miss(index, len(building.pieces) if building else 0, index in self._expected)
        return Gap(index, tuple(piece.name for piece in building.pieces.values()) if building else ())

    def _layout(self, building: _Building) -> Layout:
        """Where the slices of a whole volume lie."""
        pieces = [building.pieces[place] for place in sorted(building.pieces)]
        files = [piece.file for piece in pieces if piece.file]
        parts = [piece.part for piece in pieces if piece.part]
        positions = np.concatenate([part.positions for part in parts])
        if parts[0].grid is not None:
            return Layout(parts, parts[0].grid, np.arange(1), positions)
        order = np.arange(len(positions)) if parts[0].ordered else slice_order(positions, files[0].orientation)
        if any(file.picture != files[0].picture for file in files):
            raise GeometryError(f"expected slices of {files[0].picture} pixels, found {sorted({file.picture for file in files})}")
        positions = positions[order]
        grid = volume_grid(positions, files[0].orientation, files[0].spacing_mm, files[0].picture)
        return Layout(parts, grid, order, positions, [file.identity[2] for file in files])

    def _pass_on(self, index: int, flags: VolumeFlag) -> Volume | Gap:
        """Turn a whole volume into a :class:`Volume` and let go of its pictures."""
        building = self._building.pop(index)
        self._passed.add(index)
        pieces = [building.pieces[place] for place in sorted(building.pieces)]
        names = tuple(piece.name for piece in pieces)
        try:
            layout = self._layout(building)
            grid = self._alike.check_geometry(index, layout)
        except GeometryError as error:
            self._left_out.unlike(index, str(error))
            return Gap(index, names)
        acquired_s = self._watch.acquired_s(index, min(part.acquired_s for part in layout.parts))
        if math.isfinite(acquired_s) and index > 0:
            self.acquired_from = layout.parts[0].acquired_from
        self._alike.check_polarity(index, [piece.file for piece in pieces if piece.file])
        closed_ns = max(piece.closed_ns for piece in pieces)
        for piece in pieces:
            piece.file = piece.part = None
        data = layout.data()
        self._watch.signal(index, data)
        slice_times_s = self._alike.within(layout.slice_times_s(self.series), self.tr_s)
        return Volume(index, data, grid, self.tr_s, acquired_s, closed_ns, flags, names, slice_times_s)
