"""Delivers a recorded series again, as a scanner does: a volume's files at its time, each growing in place under its final name."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from pathlib import Path

from rtevo.errors import DataError
from rtevo.ingest.survey import Survey, survey

__all__ = ["Replay", "replay"]

CHUNK_BYTES = 64 << 10  # written at a time


class Replay:
    """A recorded series that can be delivered again. Making one reads all headers; running it copies files at their times.

    Volume k's files are copied after ``wait_until(k * tr_s)`` returned, in slice order. Copies and damaged files of the series are sent
    too: with the volume that they belong to where their headers tell, else with that of the file before them by name. Other series
    and files that are not DICOM are not sent. A volume that is missing in the recording is missing in the replay.

    Parameters
    ----------
    folder : path
        The recorded series; folders in it are looked into.
    into : path
        The watched folder; made if it is not there.
    series : str, optional
        Which series, as for :func:`rtevo.ingest.describe`.
    tr_s : float, optional
        Repetition time in seconds; the header's if None.
    echoes : int
        So many echoes of each volume are delivered together; 1: the run's alone.

    Attributes
    ----------
    tr_s : float
        Repetition time in seconds.
    deliveries : list of list of str
        Names of the files below `folder`, by volume.

    Raises
    ------
    DataError
        If there is no series to use, no repetition time, or `into` lies in `folder`.
    """

    def __init__(
        self, folder: Path | str, into: Path | str, *, series: str | None = None, tr_s: float | None = None, echoes: int = 1
    ) -> None:
        self.source, self.target = Path(folder).resolve(), Path(into).resolve()
        if self.target.is_relative_to(self.source):
            raise DataError(f"replay into {self.target}: expected a folder outside the recording, {self.source}")
        found = survey(self.source, series, echoes=echoes)
        if found.run is None:
            raise DataError(found.reason)
        tr_s = found.run.tr_s if tr_s is None else tr_s
        if tr_s is None or not tr_s > 0:
            raise DataError(f"{self.source}: expected a repetition time > 0 seconds in the headers, found {tr_s}; give one")
        self.tr_s = tr_s
        self.deliveries = _deliveries(found)

    def run(self, wait_until: Callable[[float], None], send: Callable[[str, bytes], None] | None = None) -> int:
        """Copy the files, each volume's when its time has come.

        Parameters
        ----------
        wait_until : callable
            Returns when the given time in seconds since the run's start has come.
        send : callable, optional
            Delivers a file, given its path below the folder and its contents, in place of copying it (see
            :meth:`rtevo.simulate.faults.Delivery.send`).

        Returns
        -------
        int
            Number of files copied.
        """
        for index, names in enumerate(self.deliveries):
            wait_until(index * self.tr_s)
            for name in names:
                if send is None:
                    _copy_growing(self.source / name, self.target / name)
                else:
                    send(name, (self.source / name).read_bytes())
        return sum(map(len, self.deliveries))


def replay(
    folder: Path | str,
    into: Path | str,
    wait_until: Callable[[float], None],
    *,
    series: str | None = None,
    tr_s: float | None = None,
) -> int:
    """Copy a recorded series into a watched folder at its own pace; see :class:`Replay`.

    Returns
    -------
    int
        Number of files copied.
    """
    return Replay(folder, into, series=series, tr_s=tr_s).run(wait_until)


def _deliveries(found: Survey) -> list[list[str]]:
    """Files of each volume, copies and damaged ones included."""
    assert found.run is not None
    last = max((index for _, index in found.extra_files if index is not None), default=-1)
    deliveries: list[list[str]] = [[] for _ in range(max(found.run.n_volumes, last + 1))]
    sent: set[str] = set()  # a file that holds several volumes goes with the first of them
    for volume in found.volumes:
        deliveries[volume.index] += [name for name in volume.files if name not in sent]
        sent.update(volume.files)
    owner = sorted((name, volume.index) for volume in found.volumes for name in volume.files)
    for name, index in found.extra_files:
        before = bisect.bisect(owner, (name, -1)) - 1
        deliveries[index if index is not None else owner[max(before, 0)][1]].append(name)
    return deliveries


def _copy_growing(source: Path, target: Path) -> None:
    """Copy a file piece by piece under its final name."""
    contents = source.read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb", buffering=0) as file:
        for start in range(0, len(contents), CHUNK_BYTES):
            file.write(contents[start : start + CHUNK_BYTES])
