"""Command line: what is in a folder of scanner files, and the run in it as NIfTI.

``python -m rtevo.ingest DIR [--series PATTERN] [--out RUN.nii.gz] [--json]``; with ``--listen PORT`` it first receives the files
over the DICOM network (C-STORE) into DIR, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rtevo.command import FAILED, Parser, command, say
from rtevo.errors import DataError
from rtevo.ingest.folder import FolderSource
from rtevo.ingest.survey import SeriesInfo, Survey, survey
from rtevo.progress import shown
from rtevo.records import VolumeFlag

__all__ = ["main"]

PATIENCE_S = 5.0  # for a missing volume while receiving
POLL_S = 0.02
WIDE = 150  # columns of a terminal in which the table has a column for every value
MANY = 8  # gaps are listed up to this many


def main(arguments: Sequence[str] | None = None) -> int:
    """List the series in a folder, and convert the run's on request.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line; ``sys.argv[1:]`` if None.

    Returns
    -------
    int
        0; 1 where the folder holds no series that a run could use, or the run's volumes cannot be read.
    """
    parser = Parser(prog="python -m rtevo.ingest", description="List the series in a folder of scanner files.")
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", help="folder of DICOM or NIfTI files, subfolders included")
    parser.add_argument("--series", metavar="PATTERN", help="number, UID, or (part of) description or protocol name of the run's series")
    parser.add_argument("--out", metavar="RUN.nii.gz", type=Path, help="convert the run to this NIfTI file")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    network = parser.add_argument_group("receive over the DICOM network")
    network.add_argument("--listen", metavar="PORT", type=int, help="receive into DIR (default: received) until Ctrl-C, then list it")
    network.add_argument("--ae-title", metavar="TITLE", default="RTEVO", help="name that senders must call (default: RTEVO)")
    network.add_argument(
        "--peer", metavar="TITLE[@ADDRESS]", action="append", default=[], help="who may send (may be repeated; default: everyone)"
    )
    network.add_argument("--volumes", metavar="N", type=int, help="stop after this many volumes")
    options = parser.parse_args(arguments)
    if options.folder is None:
        if options.listen is None:
            parser.error("expected DIR, or --listen PORT")
        options.folder = Path("received")
    return command(lambda: _work(options))


def _work(options: argparse.Namespace) -> int:
    """Run the requested action; return the exit status."""
    if options.out is not None:
        _check_out(options.out)
    if options.listen is not None:
        out = sys.stderr if options.json else sys.stdout
        listen(options.folder, options.listen, options.ae_title, options.peer, options.series, options.volumes, out)
    with shown() as progress:
        found = survey(options.folder, options.series, progress)
    if options.json:
        json.dump(as_json(found, options.folder), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _show(found)
    if found.run is None:
        say(found.reason)
        return FAILED
    if options.out is not None:
        try:
            convert(options.folder, options.out, found.run)
        except DataError as error:  # the run is there, but cannot be converted
            say(error)
            return FAILED
    return 0


def listen(folder: Path, port: int, ae_title: str, peers: Sequence[str], series: str | None, volumes: int | None, out: TextIO) -> None:
    """Receive over the DICOM network and report what comes, until Ctrl-C or a number of volumes.

    Parameters
    ----------
    folder : path
        Where the files go.
    port, ae_title, peers
        As for :class:`rtevo.ingest.receiver.DicomReceiver`.
    series : str or None
        Which series is the run.
    volumes : int or None
        Number of volumes after which to stop.
    out : file
        Stream for the reports.
    """
    from rtevo.ingest.receiver import DicomReceiver

    came = told = 0
    receiver = DicomReceiver(folder, port, ae_title=ae_title, peers=peers, series=series, patience_s=PATIENCE_S, pixels=False)
    with receiver:
        out.write(f"listening on port {receiver.port} as {ae_title}; files go to {folder}; stop with Ctrl-C\n")
        out.flush()
        try:
            while volumes is None or came < volumes:
                arrived = receiver.poll()
                for volume in arrived:
                    what = "missing" if VolumeFlag.MISSING in volume.flags else f"{len(volume.files)} file(s)"
                    out.write(f"volume {volume.index}: {what}\n")
                for problem in receiver.problems[told:]:
                    out.write(f"problem: {problem}\n")
                came, told = came + len(arrived), len(receiver.problems)
                out.flush()
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            out.write("\n")


def as_json(found: Survey, folder: Path) -> dict[str, Any]:
    """Return the findings as numbers, text, lists and dictionaries."""
    return {
        "folder": str(folder),
        "run": found.run.uid if found.run else None,
        "reason": found.reason or None,
        "series": [_series_json(info, info is found.run) for info in found.series],
        "duplicates": found.duplicates,
        "problems": found.problems,
    }


def _series_json(info: SeriesInfo, run: bool) -> dict[str, Any]:
    return {
        "run": run,
        "number": info.number,
        "description": info.description,
        "uid": info.uid,
        "vendor": info.vendor,
        "kind": info.kind,
        "component": info.component,
        "echo": info.echo,
        "echo_time_ms": info.te_ms,
        "files": info.files,
        "volumes": info.n_volumes,
        "announced_volumes": info.announced,
        "missing": list(info.missing),
        "tr_s": info.tr_s,
        "acquired_from": info.acquired_from or None,
        "slice_times_s": None if info.slice_times_s is None else list(info.slice_times_s),
        "shape": list(info.grid.shape),
        "voxel_size_mm": [round(float(size), 6) for size in info.grid.voxel_size_mm],
        "affine": info.grid.affine.tolist(),
        "functional": info.likely,
        "why": info.why,
        "problems": list(info.problems),
    }


def _cells(info: SeriesInfo, run: bool) -> dict[str, str]:
    """Return a series' row of the table, by heading."""
    missing = ", ".join(map(str, info.missing[:MANY])) + (" ..." if len(info.missing) > MANY else "")
    extras = [{"P": "phase", "R": "real", "I": "imaginary"}.get(info.component, ""), f"echo {info.echo}" if info.echo > 1 else ""]
    return {
        "": "run" if run else "",
        "series": "?" if info.number is None else str(info.number),
        "description": ", ".join(filter(None, [info.description, *extras])),
        "scanner, kind": f"{info.vendor} {info.kind}",
        "volumes": f"{info.n_volumes}" + (f" of {info.announced}" if info.announced and info.announced != info.n_volumes else ""),
        "TR (s)": "?" if info.tr_s is None else f"{info.tr_s:.6g}",
        "shape": " x ".join(map(str, info.grid.shape)),
        "voxels (mm)": " x ".join(f"{size:.4g}" for size in info.grid.voxel_size_mm),
        "missing": missing or "-",
        "looks": f"functional: {info.why}" if info.likely else info.why,
    }


def _show(found: Survey) -> None:
    """Print the table; in a narrow terminal with several values below each other."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDE
    rows = [_cells(info, info is found.run) for info in found.series]
    if console.width < WIDE:
        rows = [
            {
                **{heading: row[heading] for heading in ("", "series", "description")},
                "what it is": f"{row['scanner, kind']}, volumes: {row['volumes']}, TR (s): {row['TR (s)']}\n"
                f"{row['shape']} of {row['voxels (mm)']} mm\nmissing: {row['missing']}\n{row['looks']}",
            }
            for row in rows
        ]
    table = Table(show_lines=console.width < WIDE)
    for heading in rows[0] if rows else ():
        table.add_column(heading, overflow="fold", no_wrap=heading not in ("description", "missing", "looks", "what it is"))
    for row in rows:
        table.add_row(*map(Text, row.values()))
    if rows:
        console.print(table)
    console.print(f"duplicates: {found.duplicates}")
    for problem in [*found.problems, *(p for info in found.series for p in info.problems)]:
        console.print(f"problem: {problem}", markup=False)


def _check_out(out: Path) -> None:
    if not out.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"--out: expected a name that ends in .nii or .nii.gz, got {out}")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: expected an existing folder to write into")


def convert(folder: Path, out: Path, run: SeriesInfo) -> None:
    """Write a run as a four-dimensional NIfTI file of float32.

    Volumes that are missing within the run are NaN; those missing before the first that is there are left out. A run of which no
    volume can be read is not written; one of which some cannot, though their files are whole, is written and reported.

    Parameters
    ----------
    folder : path
        The run's folder.
    out : path
        ``.nii`` or ``.nii.gz``.
    run : SeriesInfo
        What :func:`rtevo.ingest.describe` found in the folder.

    Raises
    ------
    DataError
        If `out` cannot be written, there would be nothing in it, or whole volumes could not be read.
    """
    import nibabel

    first = next(index for index in range(run.n_volumes) if index not in run.missing)
    data = np.full((*run.grid.shape, run.n_volumes - first), np.nan, np.float32, order="F")
    source = FolderSource(folder, series=run.uid, patience_s=math.inf, stall_s=math.inf)
    came = _fill(data, source, first, run)
    why = list(dict.fromkeys(problem for problem in source.problems if problem not in run.problems))[:MANY]
    if not came:
        reason = "\n  ".join(["none of the run's volumes can be read; no file was written", *why])
        raise DataError(f"--out {out}: {reason}")
    image = nibabel.Nifti1Image(data, run.grid.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], run.tr_s or 0.0))
    image.set_sform(run.grid.affine, code=1)
    image.set_qform(run.grid.affine, code=1)
    try:
        nibabel.save(image, out)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written ({error.strerror})") from error
    lost = sorted(set(range(first, run.n_volumes)) - set(run.missing) - came)
    if lost:
        which = ", ".join(map(str, lost[:MANY])) + (" ..." if len(lost) > MANY else "")
        raise DataError("\n  ".join([f"--out {out}: written, but {len(lost)} of its volumes cannot be read and are NaN: {which}", *why]))


def _fill(data: NDArray[np.float32], source: FolderSource, first: int, run: SeriesInfo) -> set[int]:
    """Write the run's volumes to their places; return the indices of those that came."""
    came: set[int] = set()
    more = True
    while more:
        pending = source.pending
        volumes = source.poll()
        more = bool(volumes) or source.pending != pending
        if not more:
            volumes = source.finish()
        for volume in volumes:
            if VolumeFlag.MISSING not in volume.flags and volume.data is not None and first <= volume.index < run.n_volumes:
                data[..., volume.index - first] = volume.data
                came.add(volume.index)
    return came


if __name__ == "__main__":
    sys.exit(main())
