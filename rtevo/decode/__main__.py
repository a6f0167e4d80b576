"""Command line: build a decoder from training runs, score a recorded run with one as a session would, carry one to today's grid.

``python -m rtevo.decode fit RUN_FOLDER [RUN_FOLDER ...]``
``python -m rtevo.decode fit RUN [RUN ...] --events E.tsv [E.tsv ...] [--target "face - object"] [--out DIR]``
``python -m rtevo.decode score DECODER RUN --events E.tsv [--name MAP ... | --objective "face - 0.5 * place"] [--out SCORES.tsv]``
``python -m rtevo.decode place DECODER --on TODAY --out DIR [--transform FILE]``
``python -m rtevo.decode import (MAP.nii.gz | MODEL.pkl) --reference REF.nii.gz --mask MASK.nii.gz --out DIR [--transform A B ...]``
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.command import FAILED, Parser, command, finite, say
from rtevo.decode.carry import same_voxels
from rtevo.decode.convert import convert_maps, convert_model
from rtevo.decode.elsewhere import PICTURE, carry_folder, in_order, sampled, seen_by, sentence
from rtevo.decode.events import Event, Target, parse_target
from rtevo.decode.figures import draw_page
from rtevo.decode.fitting import draw_all, fit_selected, map_name, performance_of, response_told, told, write_selected
from rtevo.decode.folder import Decoder, maps_in, write_decoder
from rtevo.decode.imported import add_noise
from rtevo.decode.nuisance import DRIFT_SD, MOTION_SD
from rtevo.decode.recorded import Series, events_of, examples_of, nuisance_of, open_with, reference_of, series_of
from rtevo.decode.runs import open_scan
from rtevo.decode.scorer import METHODS as SCORING
from rtevo.decode.scoring import score_run
from rtevo.decode.train import METHODS, Performance, fit_weights, measure, measure_days
from rtevo.errors import DataError, DecoderError, GeometryError
from rtevo.kernels.mask import brain_mask
from rtevo.place import Placement, Verdict, place
from rtevo.place.transforms import DIRECTION, read_affine
from rtevo.realign import warm_up
from rtevo.realign.series import Run, open_nifti
from rtevo.record import LOG, RecordedSession
from rtevo.record.training import localizer_in, run_of, shown_in
from rtevo.records import Grid

__all__ = ["main"]

Array = NDArray[np.float64]
Volumes = tuple[NDArray[np.float32], NDArray[np.bool_], Run]


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
        from threadpoolctl import threadpool_limits

        warm_up(say)
        with threadpool_limits(1):  # many small products: more threads only wait for each other where others use the cores
            done = {"fit": _fit, "score": score_run, "place": _place, "import": _import}[options.command](options)
        text, status = done if isinstance(done, tuple) else (done, 0)
        sys.stdout.write(text)
        return status

    return command(work)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m rtevo.decode", description="Build decoders and score recorded runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    fit = commands.add_parser("fit", help="build a decoder from training runs")
    _fit_options(fit)
    score = commands.add_parser("score", help="score the events of a recorded run")
    score.add_argument("decoder", metavar="DECODER", type=Path, help="a decoder's folder")
    score.add_argument("run", metavar="RUN", type=Path, help="folder of DICOM files, or 4-D NIfTI file")
    score.add_argument("--events", required=True, metavar="TSV", type=Path, help="BIDS events")
    score.add_argument("--name", nargs="+", metavar="MAP", help="maps to score, if there are several (default: all)")
    score.add_argument(
        "--objective",
        metavar="TEXT",
        help="a sum over maps, as in the session file: 'face - 0.5 * place', 'face - 0.3 * keep(place)', 'rank(face)'",
    )
    score.add_argument("--more-folders", nargs="+", metavar="DIR", type=Path, help="more decoder folders whose maps the objective names")
    score.add_argument("--no-halves", dest="halves", action="store_false", help="skip the split-half reliability (saves some time)")
    score.add_argument("--method", choices=SCORING, default="deconvolve", help="default: deconvolve")
    score.add_argument("--out", metavar="TSV", type=Path, help="where to write the scores (default: print them)")
    placing = commands.add_parser("place", help="carry a decoder to today's grid")
    placing.add_argument("decoder", metavar="DECODER", type=Path, help="a decoder's folder")
    placing.add_argument("--on", required=True, metavar="TODAY", type=Path, help="today's volumes: DICOM folder or file, or NIfTI file")
    placing.add_argument("--out", required=True, metavar="DIR", type=Path, help="the folder for today, placement.json and placement.png")
    placing.add_argument("--transform", metavar="FILE", type=Path, help=f"default: estimated from the volumes. A {DIRECTION}")
    placing.add_argument("--name", help="only this map (default: all)")
    convert = commands.add_parser("import", help="make a decoder folder from maps, or from a pickled linear model of scikit-learn")
    convert.add_argument("source", metavar="SOURCE", type=Path, help="weight map (.nii, .nii.gz), or a pickled or joblib model")
    convert.add_argument("--reference", required=True, metavar="NII", type=Path, help="volume to which others are aligned")
    convert.add_argument("--mask", required=True, metavar="NII", type=Path, help="a model's columns are its voxels, in C order")
    convert.add_argument("--out", required=True, metavar="DIR", type=Path, help="the decoder's folder")
    convert.add_argument("--name", help="name of the map (default: the file's)")
    convert.add_argument("--class", dest="category", metavar="CLASS", help="class to use, if a model has more than two")
    convert.add_argument(
        "--noise", metavar="RUN", type=Path, help="a run of the same head, any task or none, for the voxels' noise and the map's unit "
        "(without it a session needs a baseline, and the map's scores cannot be added to others')"
    )  # fmt: skip
    convert.add_argument("--fwhm", type=finite, default=4.0, metavar="MM", help="with --noise: smoothing of the sessions (default: 4)")
    convert.add_argument(
        "--transform", nargs="+", metavar="FILE", type=Path, help="transform from the map's space to the reference's; several as for "
        "antsApplyTransforms -i MAP -r REFERENCE -t FILE FILE ...: fMRIPrep's .h5, ANTs' .mat and Warp.nii.gz, FSL, AFNI, LTA"
    )  # fmt: skip
    for each in (fit, score, placing, convert):
        each.add_argument("--series", metavar="PATTERN", help="series of a DICOM folder: number, UID or name")
        if each in (fit, score):
            each.add_argument(
                "--first", type=_count, metavar="N", help="if a run's first volumes are missing: number of the first that exists, "
                "counted from the volume at which the onsets are 0 (default: the choice with which more events are seen)"
            )  # fmt: skip
        if each is not placing:
            each.add_argument("--tr", type=finite, metavar="S", help="repetition time, if the file does not state it")
    return parser


def _fit_options(fit: argparse.ArgumentParser) -> None:
    fit.add_argument(
        "runs", nargs="+", metavar="RUN", type=Path, help="run folder of `rtevo localizer`, folder of DICOM files, or 4-D NIfTI file"
    )
    fit.add_argument(
        "--events", nargs="+", default=[], metavar="TSV", type=Path, help="BIDS events, one file for each run; a run folder has its own"
    )
    fit.add_argument(
        "--target", help="one map: 'face - object', 'face' (against all others) or a numeric column (default: one map for each trial_type)"
    )
    fit.add_argument("--out", metavar="DIR", type=Path, help="the decoder's folder (default: decoder, which must not exist yet)")
    fit.add_argument("--name", help="name of the map (default: made from the target)")
    fit.add_argument(
        "--method", choices=("select", *METHODS, "best"), default="select",
        help="'select' (default): ridge on the voxels that separate the categories, number and penalty by nested cross-validation; the "
        "others use all voxels, 'best' the best of them by nested cross-validation",
    )  # fmt: skip
    fit.add_argument(
        "--voxels", nargs="+", type=_count, metavar="N", help="numbers of voxels to choose from, 0: all (default: 300 1000 2000 5000 0)"
    )
    fit.add_argument(
        "--reliable", type=finite, metavar="R", help="only voxels whose responses to the categories repeat across runs: correlation of two "
        "runs' responses at least R, e.g. 0.3 (default: all; at least 100 voxels are kept)"
    )  # fmt: skip
    fit.add_argument("--mask", metavar="NII", type=Path, help="brain mask (default: found from the reference)")
    fit.add_argument("--roi", metavar="NII", type=Path, help="use only voxels inside this mask too")
    fit.add_argument(
        "--fwhm", type=finite, nargs="+", default=[4.0], metavar="MM", help="smoothing; of several widths the best is chosen (default: 4)"
    )
    fit.add_argument("--day", nargs="+", metavar="LABEL", help="day of each run (default: the DICOM study's date, else each grid is a day)")
    fit.add_argument("--permutations", type=_count, metavar="N", help="for the p-value, 0: none (default: 100; other methods: 200)")
    fit.add_argument("--seed", type=int, default=0, help="seed of the permutations (default: 0)")


def _count(text: str) -> int:
    """Read a number of voxels."""
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got '{text}'")
    return count


def _fit(options: argparse.Namespace) -> str:
    """Build a decoder; return what to tell the user."""
    if options.out is None:
        options.out = Path("decoder")
        if options.out.exists():
            raise DataError(f"{options.out}: expected a new folder: name another one with --out, or name this one to replace its contents")
    sessions = _sessions(options)
    runs = [run_of(session) for session in sessions] or [open_with(path, options) for path in options.runs]
    runs = [in_order(run, runs[0].grid) for run in runs]
    events = [shown_in(session, run) for session, run in zip(sessions, runs, strict=False)] or [
        events_of(path, run, options.first) for path, run in zip(options.events, runs, strict=True)
    ]
    if options.permutations is None:
        options.permutations = 100 if options.method == "select" else 200
    if options.method != "select" and options.target is None:
        raise DataError(f"--method {options.method}: expected --target (only the default method fits a map for every kind of event)")
    if options.name is not None and options.target is None:
        raise DataError("--name: expected --target (without it each kind of event names its map)")
    if options.reliable is not None and (options.method != "select" or len(runs) < 2):
        raise DataError("--reliable: expected two or more runs and the default method, because it compares runs")
    if options.method != "select" and len(options.fwhm) > 1:
        raise DataError(f"--fwhm: expected one width for --method {options.method}, got {len(options.fwhm)}")
    targets = None if options.target is None else _targets(options.target, events)
    first = runs[0]
    for path, run in zip(options.runs, runs, strict=True):
        if abs(run.tr_s - first.tr_s) > 1e-3:
            raise GeometryError(f"{path}: differs from {options.runs[0]}: TR {run.tr_s:g} s, expected {first.tr_s:g} s")
    days = _days(options, runs)
    reference = reference_of(first)
    mask = _mask(reference, first, options)
    others = {k: _elsewhere(path, run, reference, first, mask) for k, (path, run) in enumerate(zip(options.runs, runs, strict=True))}
    placed = {k: found for k, found in others.items() if found is not None}
    for k, (_, placement) in placed.items():
        mask &= seen_by(runs[k], placement, first.grid)
    if mask.sum() < 2:
        raise DecoderError(f"the mask: expected at least 2 voxels with signal in all runs, found {int(mask.sum())}")

    def series_at(fwhm_mm: float) -> list[Series]:
        return [
            series_of(run, reference, mask, fwhm_mm, sampled(run, *placed[k], first.grid, mask) if k in placed else None, first.grid)
            for k, run in enumerate(runs)
        ]

    placements = {str(options.runs[k]): placement.as_dict() for k, (_, placement) in placed.items()}
    if options.method == "select":
        return _fit_selected(options, series_at, events, targets, (reference, mask, first), days, placements)
    return _fit_whole(options, series_at(options.fwhm[0]), events, targets or [], (reference, mask, first), days, placements)


def _sessions(options: argparse.Namespace) -> list[RecordedSession]:
    """Open the runs of a localizer; none where runs come from elsewhere."""
    folders = [path for path in options.runs if (path / LOG).exists()]
    if len(folders) == len(options.runs) and not options.events:
        sessions = [localizer_in(path) for path in folders]
        if len(people := {session.settings["session"]["participant"] for session in sessions}) > 1:
            raise DataError(f"runs: expected runs of one participant, found {', '.join(sorted(people))}")
        options.participant = people.pop()
        options.day = options.day or [(session.start.started or "")[:10] for session in sessions]
        return sessions
    if len(options.events) != len(options.runs) or folders:
        what = f"; {folders[0]} is a run folder with its own events: leave --events out for run folders" if folders else ""
        raise DataError(f"--events: expected one file a run, got {len(options.events)} for {len(options.runs)} runs{what}")
    return []


def _fit_selected(
    options: argparse.Namespace,
    series_at: Callable[[float], list[Series]],
    events: list[list[Event]],
    targets: list[Target] | None,
    volumes: Volumes,
    days: list[str],
    placements: dict[str, Any],
) -> str:
    """Fit maps on selected voxels and write the folder; return what to tell the user."""
    reference, mask, first = volumes
    chosen, categories, weights, sd, series, fwhm_mm, responses = fit_selected(options, series_at, events, targets, first.tr_s, days)
    names = [options.name or map_name(options.target)] if targets is not None else [map_name(each) for each in categories.names]
    if len(set(names)) < len(names):
        raise DataError(f"events: expected kinds whose names differ in letters and digits, found {', '.join(categories.names)}")
    measured = performance_of(chosen, categories).as_dict() if targets is not None else chosen.as_dict()
    measured = {**chosen.as_dict(), **measured}
    if chosen.days:
        value, accuracy = (None if math.isnan(each) else each for each in chosen.days)
        measured["held_out_days"] = {"value": value, "accuracy": accuracy, "days": days, "folds": len(set(days))}
    tsnr = float(np.median(np.mean([one.values.mean(axis=0) for one in series], axis=0)[sd > 0] / sd[sd > 0]))
    settings = {**_settings(options, "select", measured, first.tr_s, tsnr), "fwhm_mm": fwhm_mm}
    settings["selection"] = {"voxels": chosen.recipe.voxels or int((sd > 0).sum()), "penalty": chosen.recipe.penalty}
    if options.reliable is not None:
        settings["selection"] |= {"voxels": int((weights != 0).any(axis=0).sum()), "reliable": options.reliable}
    if placements:
        settings["placements"] = placements
    decoders = write_selected(options.out, names, (reference, mask, first.grid), weights, sd, chosen, categories, settings, responses)
    draw_all(options.out, decoders, chosen, categories, series, sd)
    if chosen.weak:
        sys.stderr.write(f"rtevo.decode: {chosen.note}\n")
    quoted, volumes_used = ", ".join(f"'{name}'" for name in names), sum(len(one.index) for one in series)
    return (
        f"decoder{'s' * (len(names) > 1)} {quoted} ({settings['selection']['voxels']} of {int(mask.sum())} voxels, "
        f"penalty {chosen.recipe.penalty:g}, smoothing {fwhm_mm:g} mm, {volumes_used} volumes, median tSNR {tsnr:.0f})\n"
        f"{told(chosen, categories)}{response_told(names, responses)}{options.out}\n"
    )


def _fit_whole(
    options: argparse.Namespace,
    series: list[Series],
    events: list[list[Event]],
    targets: list[Target],
    volumes: Volumes,
    days: list[str],
    placements: dict[str, Any],
) -> str:
    """Fit one map to all voxels by one of the other methods; return what to tell the user."""
    reference, mask, first = volumes
    fits = [nuisance_of(one, first.tr_s) for one in series]
    examples, sd = examples_of(series, fits, events, targets, first.tr_s)
    candidates = [options.method] if options.method != "best" else METHODS if examples.targets[0].categorical else METHODS[:1]
    method, found = measure(examples, candidates, options.permutations, np.random.default_rng(options.seed))
    apart = None
    if len(set(days)) > 1:
        apart = measure_days(examples, days, candidates, options.permutations, np.random.default_rng(options.seed))
    name = options.name or map_name(options.target)
    noise, weights = np.zeros(mask.shape), np.zeros(mask.shape)
    noise[mask], weights[mask] = sd, fit_weights(examples, method)
    tsnr = np.mean([one.values.mean(axis=0) for one in series], axis=0)[sd > 0] / sd[sd > 0]
    intercept = -float(weights[mask] @ examples.patterns.mean(axis=0, dtype=np.float64))
    settings = {**_settings(options, method, found.as_dict(), first.tr_s, float(np.median(tsnr))), "intercept": intercept}
    if apart is not None:
        settings["performance"] = {**settings["performance"], "held_out_days": {**apart.as_dict(), "days": days}}
    if placements:
        settings["placements"] = placements
    decoder = write_decoder(options.out, name, reference, mask, weights, first.grid.affine, settings, noise)
    draw_page(options.out / f"{name}.png", decoder, tsnr, [one.motion_mm for one in series], found)
    return (
        f"decoder '{name}' ({method}, {int(mask.sum())} voxels, {len(examples.times_s)} volumes, median tSNR {np.median(tsnr):.0f})\n"
        f"held-out performance: {_told(found, 'blocks')}\n"
        + ("" if apart is None else f"held-out days: {_told(apart, f'blocks, {len(set(days))} days')}\n")
        + f"{options.out}\n"
    )


def _told(found: Performance, what: str) -> str:
    """Return a performance in words."""
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
        own = reference_of(run)
    except (DataError, ValueError) as problem:
        raise DataError(f"{path}: expected a run of the same head: {problem}") from None
    found = place(reference, first.grid, own, run.grid, weight=mask)
    if found.verdict is Verdict.BAD:
        raise GeometryError(f"{path}: expected a run of the same head: {sentence(found)}")
    sys.stderr.write(f"rtevo.decode: {path}: {sentence(found)}\n")
    return own, found


def _targets(text: str, events: list[list[Event]]) -> list[Target]:
    """Parse the target over all runs together, and share it out."""
    whole = parse_target(text, [event for part in events for event in part])
    ends = np.cumsum([len(part) for part in events])[:-1]
    return [Target(text, part, whole.categorical) for part in np.split(whole.coefficients, ends)]


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


def _settings(options: argparse.Namespace, method: str, performance: dict[str, Any], tr_s: float, tsnr: float) -> dict[str, Any]:
    """What goes into decoder.json."""
    versions = {name: metadata.version(name) for name in ("numpy", "scipy", "scikit-learn", "nibabel")}
    logs = [path / LOG for path in options.runs if (path / LOG).is_file()]
    files = (*options.events, *filter(Path.is_file, options.runs), *logs)
    sources = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {
        **({"participant": options.participant} if logs else {}),
        "target": options.target,
        "method": method,
        "fwhm_mm": options.fwhm[0],
        "hrf": "SPM double gamma",
        "tr_s": tr_s,
        "drift_sd": DRIFT_SD,
        "motion_sd": MOTION_SD,
        "performance": performance,
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
    noise = ""
    if options.noise is not None:
        noise = add_noise(options.out, decoder, open_with(options.noise, options), options.fwhm, options.noise)
    return f"{noise}decoder '{decoder.name}' ({int(decoder.mask.sum())} voxels): {options.out}\n"


if __name__ == "__main__":
    sys.exit(main())
