"""Command line: build a decoder from training runs, score a recorded run with one as a session would, carry one to today's grid.

``python -m rtevo.decode fit RUN [RUN ...] --events E.tsv [E.tsv ...] --target "face - object" --out DIR``
``python -m rtevo.decode score DECODER RUN --events E.tsv [--out SCORES.tsv]``
``python -m rtevo.decode place DECODER --on TODAY --out DIR [--transform FILE]``
``python -m rtevo.decode import (MAP.nii.gz | MODEL.pkl) --reference REF.nii.gz --mask MASK.nii.gz --out DIR [--transform A B ...]``
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.command import FAILED, Parser, command, finite, say
from rtevo.decode.carry import same_voxels
from rtevo.decode.convert import convert_maps, convert_model
from rtevo.decode.elsewhere import PICTURE, carry_folder, for_run, in_order, sampled, seen_by, sentence
from rtevo.decode.events import Event, Target, parse_target, read_events
from rtevo.decode.figures import draw_page
from rtevo.decode.folder import Decoder, maps_in, write_decoder
from rtevo.decode.nuisance import DRIFT_SD, MOTION_SD, motion_in_mm, penalties
from rtevo.decode.quality import whole
from rtevo.decode.running import RunningFit
from rtevo.decode.runs import open_run, open_scan
from rtevo.decode.score import Score
from rtevo.decode.scorer import METHODS as SCORING
from rtevo.decode.scorer import Scorer
from rtevo.decode.train import METHODS, Examples, Performance, fit_weights, measure, measure_days
from rtevo.errors import DataError, DecoderError, GeometryError
from rtevo.kernels.mask import brain_mask
from rtevo.kernels.smooth import smooth
from rtevo.place import Placement, Verdict, place
from rtevo.place.transforms import DIRECTION, read_affine
from rtevo.realign import Realigner, warm_up
from rtevo.realign.series import Run, align_run, mean_aligned, open_nifti
from rtevo.records import Grid

__all__ = ["main"]

Array = NDArray[np.float64]
Frames = Iterator[tuple[int, NDArray[np.float32] | None, Array]]


@dataclass(frozen=True, eq=False)
class Series:
    """One training run, aligned, smoothed and masked.

    Parameters
    ----------
    values : ndarray, float32 (n, voxels)
        Volumes that could be used.
    index : ndarray, int64 (n,)
        Their positions in the run.
    motion_mm : ndarray, float64 (volumes, 6)
        Of every volume; NaN where there is none.
    """

    values: NDArray[np.float32]
    index: NDArray[np.int64]
    motion_mm: Array


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line; ``sys.argv[1:]`` if None.

    Returns
    -------
    int
        0; 2 where the data cannot be used.
    """
    options = _parser().parse_args(arguments)

    def work() -> int:
        warm_up()
        done = {"fit": _fit, "score": _score, "place": _place, "import": _import}[options.command](options)
        text, status = done if isinstance(done, tuple) else (done, 0)
        sys.stdout.write(text)
        return status

    return command(work)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m rtevo.decode", description="Build decoders and score recorded runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="build a decoder from training runs")
    fit.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folder of DICOM files, or 4-D NIfTI file")
    fit.add_argument("--events", nargs="+", required=True, metavar="TSV", type=Path, help="BIDS events, one file a run")
    fit.add_argument("--target", required=True, help="'face - object', 'face' (against all others) or a numeric column")
    fit.add_argument("--out", required=True, metavar="DIR", type=Path, help="the decoder's folder")
    fit.add_argument("--name", help="of the map (default: made from the target)")
    fit.add_argument("--method", choices=(*METHODS, "best"), default="ridge", help="'best': by nested cross-validation (default: ridge)")
    fit.add_argument("--mask", metavar="NII", type=Path, help="brain mask (default: found from the reference)")
    fit.add_argument("--roi", metavar="NII", type=Path, help="use only voxels inside this too")
    fit.add_argument("--fwhm", type=finite, default=4.0, metavar="MM", help="smoothing (default: 4)")
    fit.add_argument("--day", nargs="+", metavar="LABEL", help="of each run (default: the DICOM study's date, else each grid is a day)")
    fit.add_argument("--permutations", type=int, default=200, help="for the p-value (default: 200)")
    fit.add_argument("--seed", type=int, default=0, help="of the permutations (default: 0)")
    score = commands.add_parser("score", help="score the events of a recorded run")
    score.add_argument("decoder", metavar="DECODER", type=Path, help="a decoder's folder")
    score.add_argument("run", metavar="RUN", type=Path, help="folder of DICOM files, or 4-D NIfTI file")
    score.add_argument("--events", required=True, metavar="TSV", type=Path, help="BIDS events")
    score.add_argument("--name", help="which map, where there are several")
    score.add_argument("--method", choices=SCORING, default="deconvolve", help="default: deconvolve")
    score.add_argument("--out", metavar="TSV", type=Path, help="where to write the scores (default: print them)")
    placing = commands.add_parser("place", help="carry a decoder to today's grid")
    placing.add_argument("decoder", metavar="DECODER", type=Path, help="a decoder's folder")
    placing.add_argument("--on", required=True, metavar="TODAY", type=Path, help="DICOM folder or file, or NIfTI file, of today")
    placing.add_argument("--out", required=True, metavar="DIR", type=Path, help="the folder for today, placement.json and placement.png")
    placing.add_argument("--transform", metavar="FILE", type=Path, help=f"default: found from the volumes. A {DIRECTION}")
    placing.add_argument("--name", help="only this map (default: all)")
    convert = commands.add_parser("import", help="make a decoder folder of maps, or of a pickled linear model of scikit-learn")
    convert.add_argument("source", metavar="SOURCE", type=Path, help="weight map (.nii, .nii.gz), or a pickled or joblib model")
    convert.add_argument("--reference", required=True, metavar="NII", type=Path, help="volume that others are aligned to")
    convert.add_argument("--mask", required=True, metavar="NII", type=Path, help="a model's columns are its voxels, in C order")
    convert.add_argument("--out", required=True, metavar="DIR", type=Path, help="the decoder's folder")
    convert.add_argument("--name", help="of the map (default: the file's)")
    convert.add_argument("--class", dest="category", metavar="CLASS", help="which, where a model tells more than two apart")
    convert.add_argument(
        "--transform", nargs="+", metavar="FILE", type=Path, help="takes the map from its own space to the reference's; several as "
        "antsApplyTransforms -i MAP -r REFERENCE -t FILE FILE ... has them: fMRIPrep's .h5, ANTs' .mat and Warp.nii.gz, FSL, AFNI, LTA"
    )  # fmt: skip
    for each in (fit, score, placing):
        each.add_argument("--series", metavar="PATTERN", help="which series of a DICOM folder")
        if each is not placing:
            each.add_argument("--tr", type=finite, metavar="S", help="repetition time, where the file does not say")
    return parser


def _fit(options: argparse.Namespace) -> str:
    """Build a decoder; return what to tell the user."""
    if len(options.events) != len(options.runs):
        raise DataError(f"--events: expected one file a run, got {len(options.events)} for {len(options.runs)} runs")
    runs = [_open(path, options) for path in options.runs]
    runs = [in_order(run, runs[0].grid) for run in runs]
    events = [_events(path, run) for path, run in zip(options.events, runs, strict=True)]
    targets = _targets(options.target, events)
    first = runs[0]
    for path, run in zip(options.runs, runs, strict=True):
        if abs(run.tr_s - first.tr_s) > 1e-3:
            raise GeometryError(f"{path}: not like {options.runs[0]}: TR {run.tr_s:g} s, expected {first.tr_s:g} s")
    days = _days(options, runs)
    reference = _reference(first)
    mask = _mask(reference, first, options)
    others = {k: _elsewhere(path, run, reference, first, mask) for k, (path, run) in enumerate(zip(options.runs, runs, strict=True))}
    placed = {k: found for k, found in others.items() if found is not None}
    for k, (_, placement) in placed.items():
        mask &= seen_by(runs[k], placement, first.grid)
    if mask.sum() < 2:
        raise DecoderError(f"the mask: expected at least 2 voxels that all runs see, found {int(mask.sum())}")
    series = [
        _series(run, reference, mask, options.fwhm, sampled(run, *placed[k], first.grid, mask) if k in placed else None, first.grid)
        for k, run in enumerate(runs)
    ]
    fits = [_nuisance(one, first.tr_s) for one in series]
    examples, sd = _examples(series, fits, events, targets, first.tr_s)
    candidates = [options.method] if options.method != "best" else METHODS if examples.targets[0].categorical else METHODS[:1]
    method, found = measure(examples, candidates, options.permutations, np.random.default_rng(options.seed))
    apart = None
    if len(set(days)) > 1:
        apart = measure_days(examples, days, candidates, options.permutations, np.random.default_rng(options.seed))
    name = options.name or "-".join("".join(c if c.isalnum() else " " for c in options.target).split())
    noise, weights = np.zeros(mask.shape), np.zeros(mask.shape)
    noise[mask], weights[mask] = sd, fit_weights(examples, method)
    tsnr = np.mean([one.values.mean(axis=0) for one in series], axis=0)[sd > 0] / sd[sd > 0]
    intercept = -float(weights[mask] @ examples.patterns.mean(axis=0, dtype=np.float64))
    settings = {**_settings(options, method, found, first.tr_s, float(np.median(tsnr))), "intercept": intercept}
    if apart is not None:
        settings["performance"] = {**settings["performance"], "held_out_days": {**apart.as_dict(), "days": days}}
    if placed:
        settings["placements"] = {str(options.runs[k]): placement.as_dict() for k, (_, placement) in placed.items()}
    decoder = write_decoder(options.out, name, reference, mask, weights, first.grid.affine, settings, noise)
    draw_page(options.out / f"{name}.png", decoder, tsnr, [one.motion_mm for one in series], found)
    return (
        f"decoder '{name}' ({method}, {int(mask.sum())} voxels, {len(examples.times_s)} volumes, median tSNR {np.median(tsnr):.0f})\n"
        f"held-out performance: {_told(found, 'blocks')}\n"
        + ("" if apart is None else f"held-out days: {_told(apart, f'blocks, {len(set(days))} days')}\n")
        + f"{options.out}\n"
    )


def _told(found: Performance, what: str) -> str:
    """Put a performance into words."""
    number = "" if math.isnan(found.value) else f"{found.value:.3f} (p = {found.p_value:.3f}, {found.blocks} {what})"
    return "; ".join(filter(None, [number, found.note]))


def _days(options: argparse.Namespace, runs: list[Run]) -> list[str]:
    """Label each run's day: as given, the date of its DICOM study, or its grid's number."""
    if options.day is not None:
        if len(options.day) != len(runs):
            raise DataError(f"--day: expected a label for each run, got {len(options.day)} for {len(runs)} runs")
        return list(options.day)
    grids: list[Grid] = []
    labels = []
    for path, run in zip(options.runs, runs, strict=True):
        known = [k for k, grid in enumerate(grids) if same_voxels(grid, run.grid) is not None]
        if not known:
            grids.append(run.grid)
        labels.append(_study_date(path, options.series) or f"grid {known[0] + 1 if known else len(grids)}")
    return labels


def _study_date(path: Path, series: str | None) -> str:
    """Date of the study that a run of DICOM files belongs to, YYYYMMDD; empty where there is none."""
    if not path.is_dir():
        return ""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    from rtevo.ingest import describe

    uid = describe(path, series).uid
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        try:
            header = dcmread(file, stop_before_pixels=True, specific_tags=["StudyDate", "SeriesInstanceUID"])
        except (InvalidDicomError, OSError, EOFError, ValueError):
            continue
        if str(header.get("SeriesInstanceUID", "")) == uid:
            return str(header.get("StudyDate", ""))
    return ""


def _elsewhere(
    path: Path, run: Run, reference: NDArray[np.float32], first: Run, mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], Placement] | None:
    """Place the first run's reference on another run's; None where both have one grid."""
    if not first.grid.difference(run.grid):
        return None
    try:
        own = _reference(run)
    except (DataError, ValueError) as problem:
        raise DataError(f"{path}: expected a run of the same head: {problem}") from None
    found = place(reference, first.grid, own, run.grid, weight=mask)
    if found.verdict is Verdict.BAD:
        raise GeometryError(f"{path}: expected a run of the same head: {sentence(found)}")
    sys.stderr.write(f"rtevo.decode: {path}: {sentence(found)}\n")
    return own, found


def _open(path: Path, options: argparse.Namespace) -> Run:
    """Open a run; its TR is known afterwards."""
    run = open_run(path, options.series)
    tr_s = run.tr_s if options.tr is None else options.tr
    if not tr_s > 0:
        raise DataError(f"{path}: expected a repetition time, found none (give --tr)")
    return Run(run.grid, tr_s, run.count, run.volume)


def _events(path: Path, run: Run) -> list[Event]:
    """Read a run's events; what is left out is said."""
    problems: list[str] = []
    events = read_events(path, run.count * run.tr_s, problems)
    sys.stderr.write("".join(f"rtevo.decode: {problem}\n" for problem in problems))
    return events


def _targets(text: str, events: list[list[Event]]) -> list[Target]:
    """Parse the target over all runs together, and share it out."""
    whole = parse_target(text, [event for part in events for event in part])
    ends = np.cumsum([len(part) for part in events])[:-1]
    return [Target(text, part, whole.categorical) for part in np.split(whole.coefficients, ends)]


def _reference(run: Run) -> NDArray[np.float32]:
    """Mean of the run's volumes, aligned to its first."""
    for index in range(run.count):
        volume = run.volume(index)
        if volume is not None:
            with Realigner(volume, run.grid.affine) as realigner:
                return mean_aligned(run, realigner)
    raise DataError("the run: expected at least one volume, found none")


def _mask(reference: NDArray[np.float32], run: Run, options: argparse.Namespace) -> NDArray[np.bool_]:
    """Brain, as found or given, inside the region of interest."""
    brain = brain_mask(reference, run.grid.affine)
    mask = brain
    for path in (options.mask, options.roi):
        if path is None:
            continue
        given = open_nifti(path)
        order, volume = same_voxels(given.grid, run.grid), given.volume(0)
        if order is None or volume is None:
            raise GeometryError(f"{path}: expected a mask on the run's grid: {run.grid.difference(given.grid)}")
        chosen = order(np.nan_to_num(volume) > 0.5)
        if not (chosen & brain).any():
            raise DecoderError(f"{path}: expected a mask inside the brain, found none of its {int(chosen.sum())} voxels there")
        mask = chosen if path == options.mask else mask & chosen
    if mask.sum() < 2:
        raise DecoderError(f"the mask: expected at least 2 voxels, found {int(mask.sum())}")
    return mask


def _aligned(run: Run, reference: NDArray[np.float32], mask: NDArray[np.bool_]) -> Frames:
    """Give index, aligned volume (None: not usable) and motion of every volume."""
    with Realigner(reference, run.grid.affine) as realigner:
        for index, (motion, volume) in enumerate(align_run(run, realigner)):
            if motion is None or not motion.converged:
                yield index, None, np.full(6, np.nan)
            else:
                raw = run.volume(index)
                usable = raw is not None and whole(raw, mask)
                yield index, volume if usable else None, np.asarray(motion.params, np.float64)


def _series(
    run: Run,
    reference: NDArray[np.float32],
    mask: NDArray[np.bool_],
    fwhm_mm: float,
    frames: Frames | None = None,
    grid: Grid | None = None,
) -> Series:
    """Align, smooth and mask a run, as the scorer does; or take the `frames` of a run that was sampled on another `grid`."""
    values, index, motion, holes = [], [], np.full((run.count, 6), np.nan), 0
    size_mm = (grid or run.grid).voxel_size_mm
    for i, volume, params in frames or _aligned(run, reference, mask):
        motion[i] = motion_in_mm(params)
        if volume is None:
            holes += bool(np.isfinite(params).all())
        elif np.isfinite(volume[mask]).all():
            values.append(smooth(np.nan_to_num(volume), size_mm, fwhm_mm)[mask])
            index.append(i)
    if len(values) < 10:
        why = f"; {holes} have numbers in the mask that are not finite" if holes else ""
        raise DataError(f"the run: expected at least 10 volumes that can be used, found {len(values)} of {run.count}{why}")
    return Series(np.array(values), np.array(index), motion)


def _terms(series: Series, tr_s: float) -> Array:
    """Nuisance terms of a run's usable volumes, as the scorer has them."""
    return np.column_stack([series.index * tr_s / 60.0, series.motion_mm[series.index]])


def _nuisance(series: Series, tr_s: float) -> RunningFit:
    """Fit drift and motion to a whole run, with the scorer's own recursion."""
    fit = RunningFit(series.values.shape[1], penalties(DRIFT_SD, MOTION_SD))
    for terms, values in zip(_terms(series, tr_s), series.values, strict=True):
        fit.add(terms, values)
    return fit


def _examples(
    series: list[Series], fits: list[RunningFit], events: list[list[Event]], targets: list[Target], tr_s: float
) -> tuple[Examples, Array]:
    """Denoised and standardised volumes of all runs, and each voxel's noise."""
    spread = np.array([fit.sd() for fit in fits])
    sd = np.where((spread > 0).all(axis=0), np.sqrt((spread**2).mean(axis=0)), 0.0)
    patterns = []
    for one, fit, own in zip(series, fits, spread, strict=True):
        scale = np.divide(1.0, own, out=np.zeros_like(own), where=sd > 0)
        rows = [fit.residual(terms, values) * scale for terms, values in zip(_terms(one, tr_s), one.values, strict=True)]
        patterns.append(np.array(rows, np.float32))
    times = np.concatenate([(one.index + 0.5) * tr_s for one in series])
    run = np.concatenate([np.full(len(one.index), number) for number, one in enumerate(series)])
    return Examples(np.concatenate(patterns), times, run, events, targets), sd


def _settings(options: argparse.Namespace, method: str, found: Performance, tr_s: float, tsnr: float) -> dict[str, Any]:
    """What goes into decoder.json."""
    versions = {name: metadata.version(name) for name in ("numpy", "scipy", "scikit-learn", "nibabel")}
    sources = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (*options.events, *filter(Path.is_file, options.runs))}
    return {
        "target": options.target,
        "method": method,
        "fwhm_mm": options.fwhm,
        "hrf": "SPM double gamma",
        "tr_s": tr_s,
        "drift_sd": DRIFT_SD,
        "motion_sd": MOTION_SD,
        "performance": found.as_dict(),
        "median_tsnr": round(tsnr, 2),
        "provenance": {"runs": [str(path) for path in options.runs], "sha256": sources, "versions": versions, "seed": options.seed},
    }


def _place(options: argparse.Namespace) -> str | tuple[str, int]:
    """Carry a decoder folder to today; return what to tell the user, and an exit status where the placement is bad."""
    if not options.decoder.is_dir():
        raise DecoderError(f"{options.decoder}: expected a decoder folder, found no such folder")
    run = open_scan(options.on, options.series)
    stored = Decoder.load(options.decoder, options.name or next(iter(maps_in(options.decoder)), None))
    matrix = None if options.transform is None else read_affine(options.transform, stored.grid, run.grid)
    placement, carried = carry_folder(options.decoder, options.name, run, options.out, matrix)
    if placement.verdict is Verdict.BAD:
        say(f"{options.on}: {sentence(placement)} ({options.out / PICTURE} shows it; no decoder was written)")
        return "", FAILED
    names = ", ".join(f"'{one.name}'" for one in carried)
    return f"{sentence(placement)}\ndecoder {names} ({int(carried[0].mask.sum())} voxels): {options.out}\n"


def _import(options: argparse.Namespace) -> str:
    """Convert maps or a model; return what to tell the user."""
    source: Path = options.source
    stem = source.name.removesuffix(".gz").rsplit(".", 1)[0].removesuffix("_img")
    if source.name.endswith((".nii", ".nii.gz")):
        decoder = convert_maps(options.reference, options.mask, source, options.out, options.name or stem, options.transform or ())
    elif options.transform:
        raise DecoderError(f"--transform: expected a map (.nii, .nii.gz), got {source}: a model's columns are the voxels of its own mask")
    else:
        decoder = convert_model(source, options.reference, options.mask, options.out, options.name or stem, options.category)
    return f"decoder '{decoder.name}' ({int(decoder.mask.sum())} voxels): {options.out}\n"


def _score(options: argparse.Namespace) -> str:
    """Score a run; return the table, or where it is."""
    decoder = Decoder.load(options.decoder, options.name)
    run = _open(options.run, options)
    trained_s = decoder.settings.get("tr_s")
    if isinstance(trained_s, float) and abs(run.tr_s / trained_s - 1) > 0.01:
        sys.stderr.write(f"rtevo: the decoder was made at a repetition time of {trained_s:g} s, this run has {run.tr_s:g} s\n")
    try:
        decoder, placement = for_run(decoder, run)
    except DataError as problem:
        raise GeometryError(f"{options.run}: {problem}") from None
    if placement is not None:
        sys.stderr.write(f"rtevo: {options.run}: {sentence(placement)}\n")
    events = _events(options.events, run)
    scores = replay(decoder, run, events, options.method)
    rows = [["onset", "duration", "trial_type", "score", "score_se", "volumes_used"]]
    for event, score in zip(events, scores, strict=True):
        numbers = [score.score, score.score_se]
        cells = ["n/a" if math.isnan(number) else f"{number:.6g}" for number in numbers]
        rows.append([f"{event.onset_s:g}", f"{event.duration_s:g}", event.trial_type or "n/a", *cells, str(score.volumes_used)])
    if options.out is None:
        return "".join("\t".join(row) + "\n" for row in rows)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return f"{len(scores)} scores: {options.out}\n"


def replay(decoder: Decoder, run: Run, events: Sequence[Event], method: Any) -> list[Score]:
    """Score the events of a recorded run volume by volume, in the order in which a session would learn of them.

    Returns
    -------
    list of Score
        The last word on each event.
    """
    duration_s = float(np.median([event.duration_s for event in events]))
    fwhm_mm = float(decoder.settings.get("fwhm_mm", 4.0))
    scorer = Scorer(decoder, run.tr_s, method=method, fwhm_mm=fwhm_mm, duration_s=duration_s)
    scores: dict[tuple[int, int], Score] = {}
    shown = 0
    for index, volume, motion in _aligned(run, decoder.reference, decoder.mask):
        while shown < len(events) and events[shown].onset_s < (index + 1) * run.tr_s:
            scorer.add_onset((0, shown), events[shown].onset_s)
            shown += 1
        scorer.add_volume(index, volume, motion)
        scores.update({score.key: score for score in scorer.ready()})
    scores.update({score.key: score for score in scorer.ready(final=True)})
    return [scores[0, k] for k in range(len(events))]


if __name__ == "__main__":
    sys.exit(main())
