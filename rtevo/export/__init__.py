"""A run as a BIDS data set: ``python -m rtevo.export OUT BIDS_DIR``.

Raw volumes become one four-dimensional NIfTI file with its sidecar, trials become ``events.tsv`` with onsets on the scanner's clock (s from
the first volume), pictures go to ``stimuli/``, and the session's results become a derivative data set: motion and framewise
displacement, the realigned volumes, scores, latents, the decoder, the session file. Several runs, sessions and participants may be
exported into one folder, one after the other; existing files are not overwritten. (Brain Imaging Data Structure 1.10; Gorgolewski et
al. 2016, doi:10.1038/sdata.2016.44.)
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo import __version__
from rtevo.errors import DataError, DecoderError
from rtevo.export.physio import recordings
from rtevo.export.words import DESCRIPTIONS, EVENTS, LOCALIZER, LOCALIZER_EVENTS, MOTION, OPTIONAL_COLUMNS, README, TASK
from rtevo.outside import copy_inside, copy_regular, shown
from rtevo.record import LOG, Notice, RecordedSession, Start, VolumeRecord, compact, image_path, read_volume, volume_path
from rtevo.record.making import recorded_making
from rtevo.records import MOTION_COLUMNS, Grid, VolumeFlag

__all__ = ["export"]

Row = dict[str, Any]
BIDS_VERSION = "1.10.0"
_SPIKES = {  # by flag: name and description of the column for a volume that a model must leave out
    VolumeFlag.MISSING: ("missing_outlier", "1 for volume {}, which never arrived or was not saved, 0 for all others."),
    VolumeFlag.UNALIGNED: ("unaligned_outlier", "1 for volume {}, which could not be aligned, 0 for all others."),
}
_SPACE = "space-scanner_desc-preproc"


if TYPE_CHECKING:
    from rtevo.realign import Making


@dataclass(frozen=True)
class _Run:
    """The exported run, and the names of its files."""

    session: RecordedSession
    bids: Path
    settings: Mapping[str, Any]
    grid: Grid

    @property
    def out(self) -> Path:
        """The session's folder."""
        return self.session.out

    @property
    def tr_s(self) -> float:
        """Repetition time, s."""
        return self.session.start.tr_s

    @property
    def prefix(self) -> str:
        """``sub-X/ses-Y/func/sub-X_ses-Y_task-rtevo_run-Z``."""
        return f"{self.folder}/func/{self.folder.replace('/', '_')}_task-{self.task}_{self.number}"

    @property
    def task(self) -> str:
        """The task's label."""
        return LOCALIZER if self.session.localizer else TASK

    @property
    def label(self) -> str:
        """``run-Z``; of a localizer ``task-localizer_run-Z``: its folder in ``stimuli`` and in the derivatives."""
        return f"task-{LOCALIZER}_{self.number}" if self.session.localizer else self.number

    @property
    def number(self) -> str:
        """``run-Z``."""
        return f"run-{self.settings['session']['run']:02d}"

    @property
    def folder(self) -> str:
        """``sub-X/ses-Y``."""
        return f"sub-{self.settings['session']['participant']}/ses-{self.settings['session']['session']}"

    @property
    def stimuli(self) -> str:
        """The run's pictures, from ``stimuli/``."""
        return f"{self.folder}/{self.label}"

    @cached_property
    def series(self) -> dict[str, dict[str, Any]]:
        """What the scanner's headers said of the raw series, by its file below the data set: one, or one for each echo."""
        said = _acquisition(self)
        times_s = said.pop("EchoTimes", [])
        if not times_s:
            return {f"{self.prefix}_bold.nii.gz": said}
        return {f"{self.prefix}_echo-{k}_bold.nii.gz": {**said, "EchoTime": te_s} for k, te_s in enumerate(times_s, 1)}

    @cached_property
    def making(self) -> Making:
        """What happened to volumes besides their motion."""
        return recorded_making(self.session)

    @cached_property
    def volumes(self) -> list[Row]:
        """Rows of the session's motion."""
        return list(self.session.motion.to_dict("records"))

    @cached_property
    def missing(self) -> list[int]:
        """Numbers of the volumes that never arrived, or were not saved."""
        gone = (row["volume"] for row in self.volumes if not volume_path(self.out, row["volume"]).exists())
        return sorted({*self.session.missing, *gone})


def _open(out: Path, bids: Path) -> _Run:
    """Read a session's folder, and check that it can be exported."""
    session = RecordedSession(out)
    if not session.records(Start):
        raise DataError(f"{out / LOG}: expected the record of a session's start, found none")
    grids = [grid for part in session.parts if (grid := part.grid) is not None]
    for grid in grids[1:]:
        if difference := grids[0].difference(grid):
            raise DataError(f"{out}: expected one grid in all parts, because a BIDS series has one; found others: {difference}")
    session.save()
    if not len(session.motion) or not grids:
        raise DataError(f"{out}: expected at least one volume, found none")
    settings = session.file_settings
    if missing := [key for key in ("participant", "session", "run") if key not in settings.get("session", {})]:
        raise DataError(f"{session.session_file}: expected [session] {missing[0]}, which is part of file names, found none")
    run = _Run(session, bids, settings, grids[0])
    came = [row["volume"] for row in run.volumes if not row["flags"] & VolumeFlag.MISSING]
    absent = [index for index in came if not volume_path(out, index).exists()]
    if len(absent) == len(came):
        raise DataError(
            f"{out / 'volumes'}: {len(absent)} of {len(run.volumes)} raw volumes are missing (first: "
            f'{came[0] if came else "none came"}); sessions keep them with [record] save_volumes = "raw"'
        )
    if absent:
        print(f"rtevo: {out / 'volumes'}: {len(absent)} volumes that arrived have no file: MissingVolumes lists them", file=sys.stderr)
    if existing := sorted(bids.glob(f"{run.prefix}_*")):
        raise DataError(f"{existing[0]}: exists already, and is not overwritten; set another [session] run, or another BIDS_DIR")
    if bids.exists() and any(bids.iterdir()) and not (bids / "dataset_description.json").exists():
        raise DataError(f"{bids}: expected an empty folder or a BIDS data set (with dataset_description.json)")
    return run


def _volumes(run: _Run, echo: int) -> NDArray[Any]:
    """All volumes of an echo (0 = first), (X, Y, Z, T): NaN where one is missing."""
    import nibabel

    data = np.full((*run.grid.shape, max(row["volume"] for row in run.volumes) + 1), np.nan, np.float32, order="F")
    for index in range(data.shape[3]):
        path = volume_path(run.out, index)
        if path.exists():
            volume = np.asanyarray(nibabel.load(path).dataobj)
            data[..., index] = volume[..., echo] if volume.ndim == 4 else volume
    return compact(data)


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tsv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns)] if header else []
    lines += ["\t".join(_cell(row.get(column)) for column in columns) for row in rows]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _cell(value: Any) -> str:
    """Return a number to the last bit; n/a if unknown."""
    from pandas import isna

    return "n/a" if value is None or isna(value) else str(value)


def _bold(run: _Run) -> None:
    """The raw series, of each echo where several were combined, and its sidecar."""
    import nibabel

    for echo, (name, said) in enumerate(run.series.items()):
        _write_bold(run, nibabel.Nifti1Image(_volumes(run, echo), run.grid.affine), run.bids / name, said)


def _write_bold(run: _Run, image: Any, path: Path, said: Mapping[str, Any]) -> None:
    """Write a raw series and its sidecar."""
    import nibabel

    affine = run.grid.affine
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], run.tr_s))
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    sidecar: dict[str, Any] = {
        "TaskName": run.task,
        "TaskDescription": DESCRIPTIONS[run.task],
        "RepetitionTime": run.tr_s,
        "NumberOfVolumesDiscardedByScanner": 0,
        "ConversionSoftware": "rtevo",
        "ConversionSoftwareVersion": __version__,
    }
    sidecar |= said
    if lost := run.missing:
        sidecar["MissingVolumes"] = lost  # 0 = first; their voxels are NaN
    _json(path.with_name(path.name.replace(".nii.gz", ".json")), sidecar)


def _physio(run: _Run) -> None:
    """Pulse and respiration, where they were measured."""
    for recording in recordings(run.session):
        stem = f"{run.prefix}_recording-{recording.name}_physio"
        path = run.bids / f"{stem}.tsv.gz"
        _tsv(path, [recording.name], [{recording.name: value} for value in recording.values.tolist()], header=False)
        _json(run.bids / f"{stem}.json", recording.sidecar())


def _acquisition(run: _Run) -> dict[str, Any]:
    """Return the scanner's header fields of the run; slice times only if they are within the repetition time, as BIDS requires."""
    found: dict[str, Any] = dict(next((r.acquisition for r in run.session.records(VolumeRecord) if r.acquisition), {}))
    times = found.get("SliceTiming", [])
    if times and not (len(times) == run.grid.shape[2] and 0 <= min(times) <= max(times) < run.tr_s):
        del found["SliceTiming"], found["SliceEncodingDirection"]
    return found


def _marks(run: _Run) -> list[Row]:
    """Return one row per mark of the operator, on the scanner's clock, which runs through all parts of a session."""
    rows = []
    for part in run.session.parts:
        clock, first = part.clock, part.start.first_volume
        last = max((r.index for r in part.records(VolumeRecord)), default=first)
        for mark in (r for r in part.records(Notice) if r.action == "mark"):
            onset_s = clock.seconds(mark.t_ns) if clock.trigger_ns is not None else clock.begins_s
            onset_s = min(onset_s, last * run.tr_s)
            onset_s = max(onset_s, clock.begins_s) if first else onset_s
            note = " ".join(mark.text.split()) or "n/a"
            rows.append({"onset": round(onset_s, 6), "duration": 0, "trial_type": "mark", "note": note})
    return rows


def _stimulus(run: _Run, source: Path, stimulus: str) -> None:
    """Copy a picture to ``stimuli/``."""
    target = run.bids / "stimuli" / stimulus
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        raise DataError(f"{source}: expected a picture, found a link: its target is not exported")
    shutil.copyfile(source, target)


def _shown(run: _Run) -> None:
    """Write one row per picture of a localizer and per mark of the operator, and the pictures as shown."""
    rows = _marks(run)
    dots = run.settings["localizer"]["task"] == "detection"
    for row in run.session.events_table.to_dict("records"):
        category, _, file = row["stim_file"].partition("/")
        dot = "-dot" if dots and row["target"] else ""
        stimulus = f"{run.stimuli}/{category}/{file.removesuffix('.png')}{dot}.png"
        if not (run.bids / "stimuli" / stimulus).exists():
            _stimulus(run, image_path(run.out, row["block"], row["position"]), stimulus)
        rows.append({**row, "stim_file": stimulus})
    rows.sort(key=lambda row: float(row["onset"]))
    _write_events(run, rows, {**LOCALIZER_EVENTS, **({"note": EVENTS["note"]} if any("note" in row for row in rows) else {})})


def _write_events(run: _Run, rows: Sequence[Row], words: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the table, a column for each of `words`, and its sidecar."""
    _tsv(run.bids / f"{run.prefix}_events.tsv", list(words), rows)
    presentation = {"StimulusPresentation": {"SoftwareName": "PsychoPy (rtevo presenter)", "SoftwareVersion": run.session.start.rtevo}}
    _json(run.bids / f"{run.prefix}_events.json", {**words, **presentation})


def _events(run: _Run) -> None:
    """Write one row per image shown and per mark of the operator, and the images."""
    rows = _marks(run)
    for trial in run.session.trials.to_dict("records"):
        if trial["onset"] != trial["onset"]:  # never shown
            continue
        source = image_path(run.out, trial["generation"], trial["candidate"])
        stimulus = f"{run.stimuli}/{source.parent.name}/{source.name}"
        _stimulus(run, source, stimulus)
        rows.append({**trial, "trial_type": "image", "stim_file": stimulus})
    rows.sort(key=lambda row: float(row["onset"]))
    columns = [name for name in EVENTS if name not in OPTIONAL_COLUMNS or any(_cell(row.get(name)) != "n/a" for row in rows)]
    words = {**EVENTS, **_maps(run)}
    columns += [name for name in words if name not in EVENTS]
    _write_events(run, rows, {name: words[name] for name in columns})


def _maps(run: _Run) -> dict[str, dict[str, str]]:
    """Return the columns of an objective's maps, with descriptions."""
    names = list(run.session.trials.columns)
    goal = run.settings["decoder"].get("objective", "")
    found = {}
    for name in (name for name in names if name.startswith("score_") and f"{name}_se" in names):
        found[name] = {"Description": f"Score of the map {name.removeprefix('score_')}; score is that of the objective {goal}."}
        found[f"{name}_se"] = {"Description": f"Standard error of {name}."}
    return found


def _confounds(run: _Run) -> tuple[dict[str, dict[str, str]], list[dict[str, Any]]]:
    """Return columns and rows of the confounds: motion, and a spike for each volume that a model must leave out.

    Models accept no gaps: the motion of a volume without motion is interpolated, which its spike makes irrelevant; the first volume has no
    displacement (n/a, as in fMRIPrep).
    """
    from rtevo.realign import framewise_displacement

    volumes = run.session.motion["volume"].to_numpy()
    params = run.session.motion[list(MOTION_COLUMNS)].to_numpy()
    known = np.isfinite(params).all(axis=1)
    if known.any():
        params = np.column_stack([np.interp(volumes, volumes[known], column[known]) for column in params.T])
    else:
        params = np.zeros_like(params)
    filled = framewise_displacement(params)
    rows: list[dict[str, Any]] = []
    for k, row in enumerate(run.volumes):
        moved = {name: row[name] if known[k] else f"{value:.6g}" for name, value in zip(MOTION_COLUMNS, params[k], strict=True)}
        given = row["framewise_displacement"]
        rows.append({**moved, "framewise_displacement": given if np.isfinite(given) or k == 0 else f"{filled[k]:.6g}"})
    columns: dict[str, dict[str, str]] = dict(MOTION)
    lost = set(run.missing)
    for flag, (name, text) in _SPIKES.items():
        own = lost if flag == VolumeFlag.MISSING else set()
        spiked_rows = [k for k, row in enumerate(run.volumes) if row["flags"] & flag or volumes[k] in own]
        for number, k in enumerate(spiked_rows):
            columns[f"{name}{number:02d}"] = {"Description": text.format(volumes[k])}
            for other, spiked in enumerate(rows):
                spiked[f"{name}{number:02d}"] = int(other == k)
    return columns, rows


def _preprocessed(run: _Run, root: Path) -> None:
    """Write the realigned series and its sidecar, for analyses; volumes that a model leaves out are the mean of the others, not gaps."""
    from rtevo.realign.series import NiftiWriter

    rows = {row["volume"]: row for row in run.volumes}
    count = max(rows) + 1
    total, usable = np.zeros(run.grid.shape), 0
    for index in range(count):
        volume = _aligned(run, rows.get(index), index)
        if volume is not None:
            total, usable = total + volume, usable + 1
    mean = (total / max(usable, 1)).astype(np.float32)
    path = root / f"{run.prefix}_{_SPACE}_bold.nii.gz"
    replaced = []
    with NiftiWriter(path, run.grid, count, run.tr_s) as out:
        for index in range(count):
            volume = _aligned(run, rows.get(index), index)
            if volume is None:
                replaced.append(index)
            out.write(mean if volume is None else volume)
    placed = "placement/part-00/decoder"  # the decoder placed today, if any: volumes were aligned to its reference
    decoder = placed if (run.out / placed).is_dir() else "decoder"
    sidecar: dict[str, Any] = {
        "TaskName": run.task,
        "RepetitionTime": run.tr_s,
        "StartTime": run.tr_s / 2,  # without slice timing correction, a volume represents the middle of its acquisition
        "SliceTimingCorrected": False,
        "SkullStripped": False,
        "Description": f"Realigned during the session (rigid body, cubic B-splines){run.making.words}, not smoothed.",
        "SpatialReference": f"bids::{run.folder}/rtevo/{run.label}/{decoder}/ref_img.nii.gz",
        "Sources": [f"bids:raw:{name}" for name in run.series],
    }
    if run.session.localizer:
        sidecar["SpatialReference"] = "the run's first volume"
    if replaced:
        sidecar["ReplacedVolumes"] = replaced  # 0 = first; see the outlier columns of the confounds
    _json(root / f"{run.prefix}_{_SPACE}_bold.json", sidecar)


def _aligned(run: _Run, row: Row | None, index: int) -> NDArray[np.float32] | None:
    """Return one realigned volume: as saved, or resampled with its motion; None if there is none."""
    import nibabel

    if row is None or row["flags"] & (VolumeFlag.MISSING | VolumeFlag.UNALIGNED):
        return None
    params = [row[name] for name in MOTION_COLUMNS]
    saved, raw = volume_path(run.out, index, "aligned"), volume_path(run.out, index)
    if saved.exists():
        return np.nan_to_num(np.asarray(nibabel.load(saved).dataobj, np.float32))
    if not raw.exists() or not np.isfinite(params).all():
        return None
    return run.making.resliced(read_volume(raw), run.grid.affine, params)


def _derivatives(run: _Run) -> None:
    """Write the session's results."""
    root = run.bids / "derivatives" / "rtevo"
    if not (root / "dataset_description.json").exists():
        description = {
            "Name": "rtevo: realigned volumes, motion, scores, latents and decoders of real-time sessions",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "rtevo", "Version": run.session.start.rtevo}],
            "SourceDatasets": [{"URL": "../.."}],
            "DatasetLinks": {"raw": "../.."},
        }
        _json(root / "dataset_description.json", description)
        (root / "README.md").write_text(README, encoding="utf-8")
        (root / ".bidsignore").write_text("**/rtevo\n**/rtevo/**\n*_timeseries.*\n", encoding="utf-8")
    columns, rows = _confounds(run)
    _tsv(root / f"{run.prefix}_desc-confounds_timeseries.tsv", list(columns), rows)
    _json(root / f"{run.prefix}_desc-confounds_timeseries.json", {**columns, "SamplingFrequency": 1 / run.tr_s})
    _preprocessed(run, root)
    extra = root / run.folder / "rtevo" / run.label
    extra.mkdir(parents=True, exist_ok=True)
    kept = ("trials.tsv", "latents.npz", "latent_space.npz", "session.toml", "provenance.json", "summary.json", LOG)
    for name in (*kept, "hidden_truth.tsv", "hidden_truth.json"):
        if (run.out / name).is_file() and not (run.out / name).is_symlink():
            copy_regular(run.out / name, extra / name)
    if not run.session.localizer:
        _copy_decoder(run, extra / "decoder")
    if (run.out / "placement").is_dir() and not (run.out / "placement").is_symlink():
        for left in copy_inside(run.out / "placement", extra / "placement"):
            print(f"rtevo: {run.out / 'placement'}: {shown(left)} is a link or not a file, and is left out", file=sys.stderr)


def _copy_decoder(run: _Run, into: Path) -> None:
    """Copy the decoder that the session names, if any: only the files of a decoder."""
    from rtevo.decode import Decoder
    from rtevo.decode.folder import decoder_files

    folder = run.session.decoder_folder
    if not folder.is_dir():
        return
    try:
        run.session.decoder  # noqa: B018
        into.mkdir()
        for name in decoder_files(folder):
            copy_regular(folder / name, into / name)
        Decoder.load(into, run.settings.get("decoder", {}).get("name") or None)
    except (DecoderError, OSError) as error:
        shutil.rmtree(into, ignore_errors=True)
        print(f"rtevo: the decoder is left out: {error}", file=sys.stderr)


def _data_set(run: _Run) -> None:
    """Write the files of the data set as a whole; each participant is listed once."""
    description = run.bids / "dataset_description.json"
    if not description.exists():
        _json(
            description,
            {
                "Name": "rtevo: real-time fMRI with evolved images",
                "BIDSVersion": BIDS_VERSION,
                "DatasetType": "raw",
                "GeneratedBy": [{"Name": "rtevo", "Version": run.session.start.rtevo}],
            },
        )
        (run.bids / "README.md").write_text(README, encoding="utf-8")
    people = run.bids / "participants.tsv"
    known = {line.partition("\t")[0] for line in people.read_text(encoding="utf-8").splitlines()[1:]} if people.exists() else set()
    known.add(run.folder.split("/")[0])
    _tsv(people, ["participant_id"], [{"participant_id": name} for name in sorted(known)])


def export(out: Path, bids: Path) -> Path:
    """Write a session's run as BIDS.

    Parameters
    ----------
    out : Path
        The session's folder. Its raw volumes must have been kept (``[record] save_volumes``).
    bids : Path
        The data set's folder: new, empty, or a BIDS data set to which this run is added.

    Returns
    -------
    Path
        The run's four-dimensional NIfTI file; of several echoes the first one's.

    Raises
    ------
    DataError
        The folder holds no session, volumes are missing, or the data set already holds this run.
    """
    run = _open(out, bids)
    bids.mkdir(parents=True, exist_ok=True)
    _data_set(run)
    (_shown if run.session.localizer else _events)(run)
    _bold(run)
    _physio(run)
    _derivatives(run)
    return bids / next(iter(run.series))
