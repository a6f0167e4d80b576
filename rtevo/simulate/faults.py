"""A scanner whose deliveries go wrong: files lost, sent twice, out of order, cut, growing, held up, renamed, among strangers.

``deliver(files, folder, "drop=0.02, grow=0.3", seed=1)`` delivers a recorded series; :class:`FaultyWriter` and
:meth:`Delivery.send` do the same to the files of a simulated scanner and of a replay as they come. The same faults, seed and files give
the same delivery.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import ConfigError
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter

__all__ = ["Delivery", "Fate", "Faults", "FaultyWriter", "deliver", "strangers"]

LONGEST_GROWTH = 4  # pieces in which a growing file comes
CHUNK_BYTES = 64 << 10  # written at a time
IN_PLACE = ("truncate", "grow", "rename")  # faults of files that are written, not sent


class Fate(IntFlag):
    """The fate of one file."""

    WHOLE = 0
    LOST = 1  # never written
    CUT = 2  # written in part, and never completed
    COPIED = 4  # came a second time, whole, under another name
    GREW = 8  # came piece by piece under its final name, first with no bytes at all
    RENAMED = 16  # written under a temporary name, or given another name after it was whole


@dataclass(frozen=True)
class Faults:
    """Faults of a delivery. Shares are of the files, from 0 to 1, each drawn by itself.

    Parameters
    ----------
    drop : float
        Share that is lost.
    duplicate : float
        Share that comes twice.
    truncate : float
        Share that is cut somewhere and stays so.
    grow : float
        Share that grows in place while later files come.
    rename : float
        Share that is written under a temporary name, or renamed once it is whole.
    stranger : float
        Share before which a file of another series, or none of a scanner, comes.
    stall : float
        Share at which the delivery stops until `stall_files` more have piled up, which then come in a burst.
    stall_files : int
        See `stall`.
    reorder : int
        Largest delay of a file, in files after its turn; 0 keeps the order.
    burst : int
        Number of files that come at a time; 1 sends each at once.
    silence_after : int
        Number of files after which the export dies, while the scanner continues; 0: never.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    truncate: float = 0.0
    grow: float = 0.0
    rename: float = 0.0
    stranger: float = 0.0
    stall: float = 0.0
    stall_files: int = 8
    reorder: int = 0
    burst: int = 1
    silence_after: int = 0

    def __post_init__(self) -> None:
        mistakes: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not 0 <= value <= 1:
                mistakes.append(f"faults {field.name}: expected a share from 0 to 1, got {value!r}")
            if field.type == "int" and not (isinstance(value, int) and value >= (field.name == "burst")):
                mistakes.append(f"faults {field.name}: expected a whole number of files, got {value!r}")
        if mistakes:
            raise ConfigError(mistakes)

    def check_sent(self) -> None:
        """Raise ConfigError where there are faults that cannot happen to files that are sent over the network."""
        wrong = [name for name in IN_PLACE if getattr(self, name)]
        if wrong:
            raise ConfigError([f"faults {name}: expected 0 where files are sent, got {getattr(self, name)!r}" for name in wrong])

    def table(self, fates: dict[str, Fate]) -> str:
        """Return the fate of each file, as tab-separated text."""
        rows = (f"{name}\t{'|'.join(str(one.name).lower() for one in fate) or 'whole'}\n" for name, fate in fates.items())
        return "file\tfate\n" + "".join(rows)

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Read faults written as ``"drop=0.02, reorder=5"``; an empty text has none.

        Raises
        ------
        ConfigError
            If a name or a value is none; every mistake is in it.
        """
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        given: dict[str, float] = {}
        mistakes = []
        for word in filter(None, (word.strip() for word in text.split(","))):
            name, _, value = (part.strip() for part in word.partition("="))
            try:
                given[name] = {"float": float, "int": int}[str(types[name])](value)
            except KeyError:
                mistakes.append(f"faults: expected one of {', '.join(types)}, got {name!r}")
            except ValueError:
                mistakes.append(f"faults {name}: expected a number, got {value!r}")
        if mistakes:
            raise ConfigError(mistakes)
        return cls(**given)  # type: ignore[arg-type]


class Delivery:
    """Delivers files into a folder, wrongly.

    Parameters
    ----------
    folder : path, or callable
        Made if it is not there; or what sends a file, given its name and contents (:mod:`rtevo.simulate.send`), all at once: nothing
        then grows, is cut or renamed.
    faults : Faults or str
        How it goes wrong; text as for :meth:`Faults.parse`.
    seed : int, or sequence of int
        Of every draw.
    on_change : callable, optional
        Called after every change to the folder.
    others : list of (str, bytes), optional
        Name and contents of the files that come in between, over and over; those of :func:`strangers` (of them that are DICOM, where
        files are sent) if None.

    Attributes
    ----------
    fates : dict of str to Fate
        What becomes of each file that was sent, by its name.

    Raises
    ------
    ConfigError
        If the faults are none, or none that can happen on that way.
    """

    def __init__(
        self,
        folder: Path | str | Callable[[str, bytes], None],
        faults: Faults | str,
        *,
        seed: int | Sequence[int],
        on_change: Callable[[], None] | None = None,
        others: list[tuple[str, bytes]] | None = None,
    ) -> None:
        self.folder = Path() if callable(folder) else Path(folder)
        self._send = folder if callable(folder) else None
        self.faults = Faults.parse(faults) if isinstance(faults, str) else faults
        if self._send is not None:
            self.faults.check_sent()
        self.fates: dict[str, Fate] = {}
        self._rng = np.random.default_rng(seed)
        self._on_change = on_change or (lambda: None)
        self._others = strangers() if others is None and self.faults.stranger else others or []
        if self._send is not None:
            self._others = [(name, contents) for name, contents in self._others if contents[128:132] == b"DICM"]
        self._came = 0  # strangers
        self._turn = 0  # files sent so far
        self._due: list[tuple[int, int, Callable[[], None]]] = []  # turn, rank among those of the turn, what is done then
        self._rank = 0
        self._stalled_until = 0
        if self._send is None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def send(self, name: str, contents: bytes) -> None:
        """Deliver a file, or whatever becomes of it; what is held back comes with later files or at the end.

        Parameters
        ----------
        name : str
            Path below the folder.
        contents : bytes
            The file.
        """
        faults = self.faults
        if faults.silence_after and len(self.fates) >= faults.silence_after:
            self.fates[name] = Fate.LOST
            return
        if self._others and self._draw(faults.stranger):
            self._later(0, self._stranger(self._came))
            self._came += 1
        self.fates[name] = self._plan(name, contents)
        self._turn += 1
        if self._draw(faults.stall):
            self._stalled_until = max(self._stalled_until, self._turn + faults.stall_files)
        if self._turn >= self._stalled_until and self._turn % faults.burst == 0:
            self._do_due(self._turn)

    def finish(self) -> None:
        """Deliver everything that is still held back."""
        while self._due:
            self._do_due(max(turn for turn, _, _ in self._due) + 1)

    def _draw(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def _later(self, turns: int, action: Callable[[], None]) -> None:
        self._due.append((self._turn + turns, self._rank, action))
        self._rank += 1

    def _do_due(self, turn: int) -> None:
        due = sorted((entry for entry in self._due if entry[0] < turn), key=lambda entry: entry[:2])
        self._due = [entry for entry in self._due if entry[0] >= turn]
        for _, _, action in due:
            action()
            self._on_change()

    def _plan(self, name: str, contents: bytes) -> Fate:
        """Draw what becomes of a file, and put it on the list of what to do when."""
        faults = self.faults
        wait = int(self._rng.integers(faults.reorder + 1))
        lost, cut, copied, grows, renamed = map(self._draw, (faults.drop, faults.truncate, faults.duplicate, faults.grow, faults.rename))
        fate = Fate.WHOLE
        if copied:
            fate |= Fate.COPIED
            stem, dot, ending = name.rpartition(".")
            other = f"{stem or ending} (copy){dot if stem else ''}{ending if stem else ''}"
            self._later(int(self._rng.integers(faults.reorder + 2)), self._writer(other, contents))
        if lost:
            return fate | Fate.LOST
        if cut:
            contents = contents[: int(self._rng.integers(len(contents)))]
            fate |= Fate.CUT
        if grows:
            fate |= Fate.GREW
            ends = sorted(int(end) for end in self._rng.integers(len(contents) + 1, size=LONGEST_GROWTH - 2))
            for step, end in enumerate((0, *ends, len(contents))):
                self._later(wait + step // 2, self._writer(name, contents[:end]))
        elif renamed and not cut:
            fate |= Fate.RENAMED
            self._rename(name, contents, wait)
        else:
            self._later(wait, self._writer(name, contents))
        return fate

    def _rename(self, name: str, contents: bytes, wait: int) -> None:
        """Write under a temporary name first, or give a whole file another name later."""
        first, second = (f"{name}.part", name) if self._draw(0.5) else (name, f"{name}.moved")
        self._later(wait, self._writer(first, contents))
        self._later(wait + int(self._rng.integers(2)), lambda: os.replace(self.folder / first, self.folder / second))

    def _writer(self, name: str, contents: bytes) -> Callable[[], None]:
        return lambda: self._write(name, contents)

    def _stranger(self, number: int) -> Callable[[], None]:
        name, contents = self._others[number % len(self._others)]
        return lambda: self._write(f"{number:04d}-{name}", contents)

    def _write(self, name: str, contents: bytes) -> None:
        """Send a file, or write what it has so far: piece by piece, and what is there already is only added to."""
        if self._send is not None:
            self._send(name, contents)
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            for start in range(file.tell(), len(contents), CHUNK_BYTES):
                file.write(contents[start : start + CHUNK_BYTES])


def deliver(
    files: Iterable[tuple[str, bytes]],
    folder: Path | str | Callable[[str, bytes], None],
    faults: Faults | str,
    *,
    seed: int | Sequence[int],
    on_change: Callable[[], None] | None = None,
) -> Delivery:
    """Deliver a series into a folder, wrongly.

    Parameters
    ----------
    files : iterable of (str, bytes)
        Names and contents in the order in which a scanner sends them; an iterator may take its time between two.
    folder, faults, seed, on_change
        As for :class:`Delivery`.

    Returns
    -------
    Delivery
        Everything has been delivered; its ``fates`` tell what became of each file.
    """
    with Delivery(folder, faults, seed=seed, on_change=on_change) as delivery:
        for name, contents in files:
            delivery.send(name, contents)
    return delivery


class _Encoder(Protocol):
    """A writer of volumes as files, for example :class:`rtevo.simulate.dicom.MosaicWriter`."""

    def encode(self, index: int, volume: NDArray[np.float32] | NDArray[np.int16]) -> bytes: ...

    def path(self, index: int) -> Path: ...


class FaultyWriter:
    """A simulated scanner's writer whose files are delivered wrongly; takes the place of the one it is made from.

    Parameters
    ----------
    writer : MosaicWriter, or another encoder
        Gives the files and their names.
    delivery : Delivery
        Takes them.
    more : sequence of MosaicWriter
        Of further echoes: volumes then have an axis for echoes, and each is a file of its own.
    """

    def __init__(self, writer: _Encoder, delivery: Delivery, more: Sequence[_Encoder] = ()) -> None:
        self.delivery = delivery
        self._writer, self._more = writer, [FaultyWriter(other, delivery) for other in more]

    def write(self, index: int, volume: NDArray[np.float32] | NDArray[np.int16]) -> Path:
        """Deliver one volume; returns the path that its (first) file has if nothing goes wrong."""
        if self._more:
            path = FaultyWriter(self._writer, self.delivery).write(index, volume[0])
            for other, echo in zip(self._more, volume[1:], strict=True):
                other.write(index, echo)
            return path
        path = self._writer.path(index)
        self.delivery.send(path.name, self._writer.encode(index, volume))
        return self.delivery.folder / path.name


def strangers() -> list[tuple[str, bytes]]:
    """Files that lie in export folders beside a run's: a reference scan, a localiser, notes, an empty file; name and contents."""
    grid = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
    picture = np.ones(grid.shape, np.float32)
    found = [("notes.txt", b"the participant asked for a blanket\n" * 8)]
    for number, name in ((901, "bold_SBRef"), (902, "localizer")):
        writer = MosaicWriter(os.curdir, grid, 2.0, description=name, series_number=number, started=datetime.datetime(2026, 1, 2))
        found += [(f"{name}-{k}.dcm", writer.encode(k, picture)) for k in range(2)]
    return [*found, ("placeholder", b"")]
