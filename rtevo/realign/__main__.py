"""Command line: align a recorded run, bit for bit as a running session does.

``python -m rtevo.realign RUN.nii.gz|DICOM_DIR [--reference FILE|first|mean] --out DIR``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rtevo.command import Parser, command, say
from rtevo.decode.runs import open_run
from rtevo.errors import DataError
from rtevo.progress import shown
from rtevo.realign.figure import draw_motion
from rtevo.realign.measures import framewise_displacement
from rtevo.realign.realigner import Motion, Realigner, warm_up
from rtevo.realign.series import (
    NiftiWriter,
    Run,
    Volume,
    align_run,
    first_volume,
    mean_aligned,
    params_of,
    reference_from,
    write_motion,
)

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m rtevo.realign", description="Align a recorded run to one reference.")
    parser.add_argument("run", metavar="RUN.nii.gz|DICOM_DIR", type=Path, help="4-D NIfTI file, or a folder of DICOM files")
    parser.add_argument("--reference", default="first", metavar="FILE|first|mean", help="volume to align to (default: first)")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder for aligned.nii.gz, motion.tsv and motion.png")
    parser.add_argument("--threads", type=int, default=1, help="number of threads; results do not depend on it (default: 1)")
    parser.add_argument("--series", metavar="PATTERN", help="series of a DICOM folder: number, UID or name")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Align a run.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line; ``sys.argv[1:]`` if None.

    Returns
    -------
    int
        0; 2 where the run or the reference cannot be used.
    """
    options = _parser().parse_args(arguments)
    return command(lambda: _work(options))


def _work(options: argparse.Namespace) -> None:
    """Align a run, and write what came out."""
    if options.threads < 1:
        raise DataError(f"--threads: expected at least 1, got {options.threads}")
    with shown() as progress:
        run = open_run(options.run, options.series, progress)
    options.out.mkdir(parents=True, exist_ok=True)
    warm_up(say)
    try:
        motions = _align(run, _reference(run, options), options)
    except ValueError as error:
        raise DataError(str(error)) from error
    params = params_of(motions)
    write_motion(options.out / "motion.tsv", motions, run.tr_s)
    draw_motion(options.out / "motion.png", params, run.tr_s, options.run.name)
    sys.stdout.write(_summary(motions, options.out))


def _reference(run: Run, options: argparse.Namespace) -> Volume:
    if options.reference == "first":
        return first_volume(run)
    if options.reference == "mean":
        with Realigner(first_volume(run), run.grid.affine, threads=options.threads) as realigner:
            return mean_aligned(run, realigner)
    return reference_from(Path(options.reference), run.grid)


def _align(run: Run, reference: Volume, options: argparse.Namespace) -> list[Motion | None]:
    motions: list[Motion | None] = []
    with (
        Realigner(reference, run.grid.affine, threads=options.threads) as realigner,
        NiftiWriter(options.out / "aligned.nii.gz", run.grid, run.count, run.tr_s) as file,
    ):
        for motion, aligned in align_run(run, realigner):
            motions.append(motion)
            file.write(aligned)
    return motions


def _summary(motions: list[Motion | None], out: Path) -> str:
    lines = [f"volume {n} could not be aligned: {m.reason}" for n, m in enumerate(motions) if m is not None and not m.converged]
    lines += [f"volume {n} is missing" for n, m in enumerate(motions) if m is None]
    displacement = framewise_displacement(params_of(motions))
    good = displacement[np.isfinite(displacement)]
    if len(good):
        lines.append(f"framewise displacement: mean {good.mean():.3f} mm, largest {good.max():.3f} mm")
    done = sum(m is not None and m.converged for m in motions)
    return "\n".join([*lines, f"{done} of {len(motions)} volumes aligned: {out}", ""])


if __name__ == "__main__":
    sys.exit(main())
