"""The log's parts -> tables and summary."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtevo.record.kinds import (
    AlignedRecord,
    End,
    EventRecord,
    FitnessRecord,
    ImageRecord,
    LatentRecord,
    Lost,
    Notice,
    PlacementRecord,
    Record,
    RefusedRecord,
    ScoreRecord,
    Truth,
)
from rtevo.record.localizer import is_localizer, summary_of
from rtevo.record.parts import Part
from rtevo.record.waits import held
from rtevo.records import MOTION_COLUMNS, Decision, EventKind, VolumeFlag

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "MOTION",
    "TRIALS",
    "aligned_volumes",
    "frame",
    "hidden_truth",
    "motion_frame",
    "summarise",
    "trial_rows",
    "trials_frame",
    "write_table",
]

SCHEMA = 1
TRIALS = {
    "onset": ("float64", "flip at which the image appeared, s from the session's first volume; missing: never shown"),
    "duration": ("float64", "time until the flip that took it away, s"),
    "onset_error": ("float64", "bound of the onset's error, s"),
    "duration_error": ("float64", "bound of the duration's error, s"),
    "guessed": ("Int64", "1: onset, end or response is a guess within its bounds"),
    "dropped_frames": ("Int64", "frames that the screen missed between the end of the previous image and that of this one"),
    "generation": ("int64", "generation of the image, 0 = first"),
    "candidate": ("int64", "its number in the generation"),
    "probe": ("Int64", "number of the probe; missing: a candidate of evolution"),
    "rating": ("float64", "the participant's rating, 0 = lowest"),
    "response_time": ("float64", "time from the opening of the rating window, s"),
    "score": ("float64", "the brain's response to it, last revision"),
    "score_se": ("float64", "its standard error"),
    "volumes_used": ("Int64", "number of volumes used for the score"),
    "fitness": ("float64", "fitness, as used by evolution"),
    "physiology": ("float64", "the response of the participant's physiology; only if measured"),
    "true_response": ("float64", "a simulated participant's hidden preference; only in simulations"),
    "refused": ("Int64", "number of its pictures that the gate refused; only if there are any"),
    "taken_away": ("Int64", "1: operator, participant or stimulus PC took it away or refused it; only if there are any"),
    "part": ("Int64", "part of the session in which it was shown; only if there are several"),
}
"""Columns of ``trials.tsv`` and of :attr:`RecordedSession.trials`: type and meaning; after them, of an objective over several maps, each
map's score ``score_MAP`` and its standard error ``score_MAP_se``; and then ``x0``, ``x1``, ...: its latent."""
MOTION = {
    "volume": ("int64", "number of the volume in the session, 0 = first"),
    "onset": ("float64", "start of its acquisition, s from the session's first volume"),
    "acquired": ("float64", "the scanner's acquisition time, s from the run's first volume"),
    "flags": ("int64", "sum of `VolumeFlag`: 1 missing, 2 could not be aligned, 4 came late, 8 spike"),
    **{name: ("float64", f"translation along {name[-1]} (RAS+), mm") for name in MOTION_COLUMNS[:3]},
    **{name: ("float64", f"rotation about {name[-1]} (RAS+), rad") for name in MOTION_COLUMNS[3:]},
    "framewise_displacement": ("float64", "since the previous volume, mm (Power et al. 2012, 50 mm sphere)"),
    "dvars": ("float64", "in the decoder's mask, percent"),
    "tsnr": ("float64", "median in the decoder's mask, of all volumes so far"),
    "part": ("int64", "part of the session; only if there are several"),
}
"""Columns of ``motion.tsv`` and of :attr:`RecordedSession.motion`: type and meaning."""
_WHERE_KNOWN = ("physiology", "true_response", "refused", "taken_away")
_OF_THE_LOG = ("schema", "part", "first_volume", "decoder_state", "sha256", "rings", "warnings", "settings", "provenance", "trials")
"""Fields of start and end that are not part of a summary."""
_OF_PLACEMENTS = ("attempt", "own_grid", "matrix", "correlation", "overlap", "weight_kept", "expected_error_mm", "verdict")
Row = dict[str, Any]


# --- rows --------------------------------------------------------------------------------------------------------------------------------


def aligned_volumes(divided: Iterable[Part]) -> list[AlignedRecord]:
    """Return the record of each volume, in run order; a volume that came after it was declared missing has its late record."""
    found: dict[int, AlignedRecord] = {}
    for part in divided:
        for record in part.records(AlignedRecord):
            if record.index not in found or not record.flags & VolumeFlag.MISSING:
                found[record.index] = record
    return [found[index] for index in sorted(found)]


class _Trials:
    """Collects the data of each image."""

    def __init__(self, divided: Sequence[Part]) -> None:
        self.rows: dict[tuple[int, int], Row] = {}
        for number, part in enumerate(divided):
            self._part, self._clock = number, part.clock
            for record in part:
                self._take(record)

    def _row(self, record: Any) -> Row:
        key = (record.generation, record.candidate)
        return self.rows.setdefault(key, {"generation": key[0], "candidate": key[1], "number": len(self.rows)})

    def _take(self, record: Record) -> None:
        if isinstance(record, EventRecord):
            self._event(record)
        elif isinstance(record, LatentRecord):
            asked = {"probe": None if record.probe < 0 else record.probe, "parents_scored_ns": record.scored_ns, "asked_part": self._part}
            self._row(record).update(latent=record.latent, embedding=record.embedding, **asked)
        elif isinstance(record, RefusedRecord):
            row = self._row(record)
            row["refused"] = row.get("refused", 0) + 1
        elif isinstance(record, ImageRecord) and not record.refused:
            painted = {"post_embedding": record.embedding, "sha256": record.sha256, "painted_part": self._part}
            self._row(record).update(painted_ns=record.painted_ns, **painted)
        elif isinstance(record, ScoreRecord):
            names = ("score", "score_se", "volumes_used", "reliability", "closed_ns", "scored_ns")
            maps = {f"score_{name}{end}": own[k] for name, own in (record.maps or {}).items() for k, end in enumerate(("", "_se"))}
            self._row(record).update({name: getattr(record, name) for name in names}, **({"maps": maps} if maps else {}))
        elif isinstance(record, FitnessRecord):
            self._row(record)["fitness"] = record.fitness

    def _event(self, event: EventRecord) -> None:
        kind = event.kind
        if kind == EventKind.ONSET and self._clock.trigger_ns is not None:
            onset, error_s = self._clock.seconds(event.t_ns), event.error_ns / 1e9
            self._row(event).update(onset_ns=event.t_ns, onset=onset, onset_error=error_s, guessed=int(event.guess), part=self._part)
        elif kind == EventKind.OFFSET and self._clock.trigger_ns is not None:
            row = self._row(event)
            if "onset_ns" in row:
                row["duration"] = (event.t_ns - row["onset_ns"]) / 1e9
                row["duration_error"] = row["onset_error"] + event.error_ns / 1e9
                row["guessed"] |= int(event.guess)
            row["dropped_frames"] = None if math.isnan(event.value) else int(event.value)
        elif kind in (EventKind.TAKEN, EventKind.REFUSED):
            self._row(event)["taken_away"] = 1
        elif kind == EventKind.RATING:
            row = self._row(event)
            row.update(rating=event.value, response_time=event.response_time_s)
            row["guessed"] = row.get("guessed", 0) | int(event.guess)
        elif kind == EventKind.PHYSIOLOGY:
            self._row(event)["physiology"] = event.value


def trial_rows(divided: Sequence[Part], truth: Mapping[str, float]) -> list[Row]:
    """Return a row for each image, in the order of presentation; images that were never shown come last.

    Parameters
    ----------
    divided : sequence of Part
    truth : mapping of str to float
        A simulated participant's preferences that are not in the log, see :func:`hidden_truth`.
    """
    known = {k: v for part in divided for record in part.records(Truth) for k, v in (record.preferences or {}).items()} | dict(truth)
    rows = list(_Trials(divided).rows.values())
    for row in rows:
        preference = known.get(row.get("sha256", "")[:16])
        if preference is not None and "onset" in row:
            row["true_response"] = preference
    return sorted(rows, key=lambda row: (row.get("onset", math.inf), row["generation"], row["candidate"]))


def hidden_truth(out: Path) -> dict[str, float]:
    """Read a simulated participant's preference for each picture, by the first 16 digits of its SHA-256; an incomplete line is left out."""
    path = out / "hidden_truth.tsv"
    if not path.exists():
        return {}
    header, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
    names = header.split("\t")
    cells = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    return {row["pixels_sha256"]: float(row["preference"]) for row in cells}


# --- tables ------------------------------------------------------------------------------------------------------------------------------


def frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> DataFrame:
    """Return a table with some columns, by name and type, from rows that may lack them."""
    from pandas import DataFrame, Series

    return DataFrame({name: Series([row.get(name) for row in rows], dtype=kind) for name, kind in columns.items()})


def trials_frame(rows: Sequence[Row], several: bool) -> DataFrame:
    """Return the table of the trials, see :data:`TRIALS`; `several`: the session has several parts."""
    left_out = {name for name in _WHERE_KNOWN if not any(name in row for row in rows)} | (set() if several else {"part"})
    size = max((len(row["latent"]) for row in rows if "latent" in row), default=0)
    columns = {name: kind for name, (kind, _) in TRIALS.items() if name not in left_out}
    columns |= {name: "float64" for row in rows for name in row.get("maps", ())} | {f"x{i}": "float64" for i in range(size)}
    latents = [{f"x{i}": float(x) for i, x in enumerate(row.get("latent", ()))} for row in rows]
    return frame([{**row, **row.get("maps", {}), **latent} for row, latent in zip(rows, latents, strict=True)], columns)


def motion_frame(divided: Sequence[Part], tr_s: float) -> DataFrame:
    """Return the table of the volumes, see :data:`MOTION`."""
    firsts = [part.start.first_volume for part in divided]
    rows = [
        {
            "volume": r.index,
            "onset": round(r.index * tr_s, 6),
            "acquired": r.acquired_s,
            "flags": r.flags,
            **dict(zip(MOTION_COLUMNS, r.motion, strict=True)),
            "framewise_displacement": r.framewise_displacement_mm,
            "dvars": r.dvars_percent,
            "tsnr": r.tsnr,
            "part": bisect_right(firsts, r.index) - 1,
        }
        for r in aligned_volumes(divided)
    ]
    return frame(rows, {name: kind for name, (kind, _) in MOTION.items() if name != "part" or len(divided) > 1})


def write_table(table: DataFrame, path: Path) -> None:
    """Write a BIDS-style table: tabs, n/a for missing values, numbers to the last bit."""
    table.to_csv(path, sep="\t", na_rep="n/a", index=False, lineterminator="\n")


# --- summary -----------------------------------------------------------------------------------------------------------------------------


def summarise(divided: Sequence[Part], rows: Sequence[Row]) -> Row:
    """Make the summary; its keys are those of :data:`rtevo.record.files.SUMMARY`.

    Parameters
    ----------
    divided : sequence of Part
    rows : sequence of dict
        See :func:`trial_rows`.
    """
    start: Row = next((part.start.fields() for part in divided if part.start.seq >= 0), {})
    end = (divided[-1].end if divided else None) or End()
    if grid := next((part.grid for part in divided if part.grid is not None), None):
        start |= {"shape": list(grid.shape), "affine": grid.affine.tolist()}
    aligned = aligned_volumes(divided)
    summary = {
        "schema": SCHEMA,
        **{k: v for k, v in start.items() if k not in _OF_THE_LOG},
        **{k: v for k, v in end.fields().items() if k not in _OF_THE_LOG},
        "volumes": _volumes(aligned),
        "images": {
            "painted": sum("painted_ns" in row for row in rows),
            "shown": sum("onset" in row for row in rows),
            "times_held": len(held(divided)),
            "cadence_s": _cadence(rows),
        },
        "generations": _generations(rows),
        "probes": _probes(rows),
        "placements": [placement for number, part in enumerate(divided) for placement in _placements(number, part)],
        "quality": _quality(aligned, rows),
        "latencies_ms": _latencies(aligned, rows),
        "rings": end.rings or {},
        "warnings": [text for part in divided for text in _warnings(part)],
    }
    if is_localizer(divided):
        summary["localizer"] = summary_of(divided)
    if len(divided) > 1:
        summary["parts"] = [_part(part) for part in divided]
    return summary


def _volumes(aligned: Sequence[AlignedRecord]) -> Row:
    """Return the numbers of volumes that came, and of their outcomes."""
    lost, unaligned, late = (
        sum(bool(r.flags & flag) for r in aligned) for flag in (VolumeFlag.MISSING, VolumeFlag.UNALIGNED, VolumeFlag.LATE)
    )
    came = len(aligned) - lost
    return {"received": came, "aligned": came - unaligned, "lost": lost, "unaligned": unaligned, "late": late}


def _placements(number: int, part: Part) -> list[Row]:
    """Return each accepted placement of the decoder."""
    accepted = (record for record in part.records(PlacementRecord) if record.decision == Decision.ACCEPTED)
    return [{"part": number, **{name: getattr(record, name) for name in _OF_PLACEMENTS}} for record in accepted]


def _part(part: Part) -> Row:
    """Return when a part of a session began and how it ended; ``interrupted``: without an end record."""
    start, end = part.start, part.end or End()
    return {
        "started": start.started,
        "ended": end.ended,
        "status": end.status or "interrupted",
        "first_volume": start.first_volume,
        "decoder_state": start.decoder_state,
    }


def _warnings(part: Part) -> list[str]:
    """Return the warnings of a part: from its end record, or without one, from the messages."""
    told, found = list[str](), list[str]()
    for record in part:
        if isinstance(record, Lost):
            found.append(record.text)
        elif isinstance(record, Notice) and record.level in ("warning", "alarm"):
            told.append(record.text)
        elif isinstance(record, End):
            found, told = found + list(record.warnings or []), []
    return found + told


def _distribution(milliseconds: list[float]) -> Row:
    """Return n, p50, p99 and max of latencies, rounded to microseconds."""
    if not milliseconds:
        return {"n": 0, "p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"n": len(milliseconds), "p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(max(milliseconds), 3)}


def _latencies(aligned: Sequence[AlignedRecord], rows: Sequence[Row]) -> Row:
    came = [(r.aligned_ns - r.closed_ns) / 1e6 for r in aligned if not r.flags & VolumeFlag.MISSING]
    scored = [(t["scored_ns"] - t["closed_ns"]) / 1e6 for t in rows if t.get("closed_ns") and t.get("scored_ns")]
    first: dict[int, float] = {}
    for trial in rows:
        if trial.get("painted_ns") and trial.get("parents_scored_ns") and trial["painted_part"] == trial["asked_part"]:
            waited = (trial["painted_ns"] - trial["parents_scored_ns"]) / 1e6
            first[trial["generation"]] = min(waited, first.get(trial["generation"], math.inf))
    return {
        "file_closed_to_aligned": _distribution(came),
        "last_needed_volume_to_score": _distribution(scored),
        "scores_to_first_image": _distribution(list(first.values())),
    }


def _quality(aligned: Sequence[AlignedRecord], rows: Sequence[Row]) -> Row:
    """Return the quality of the data: tSNR, motion, DVARS, spikes, and the reliability of the scores."""
    tsnr, displacement, dvars = (
        [float(value) for r in aligned if not math.isnan(value := getattr(r, name))]
        for name in ("tsnr", "framewise_displacement_mm", "dvars_percent")
    )
    scored = sorted((t for t in rows if not math.isnan(t.get("reliability", math.nan))), key=lambda t: t["number"])
    return {
        "tsnr": round(tsnr[-1], 2) if tsnr else None,
        "framewise_displacement_mm": {"mean": _mean(displacement), "max": round(max(displacement), 4) if displacement else None},
        "dvars_percent": {"p50": round(float(np.median(dvars)), 4), "max": round(max(dvars), 4)} if dvars else {"p50": None, "max": None},
        "spikes": sum(bool(r.flags & VolumeFlag.SPIKE) for r in aligned),
        "score_reliability": round(float(scored[-1]["reliability"]), 4) if scored else None,
    }


def _mean(values: Iterable[Any]) -> float | None:
    finite = [float(v) for v in values if v is not None and not math.isnan(v)]
    return round(math.fsum(finite) / len(finite), 6) if finite else None


def _generations(rows: Sequence[Row]) -> list[Row]:
    """Return means of fitness, score, rating and, in a simulation, the true response, by generation."""
    result = []
    rows = [row for row in rows if row.get("probe") is None]
    for generation in sorted({row["generation"] for row in rows}):
        own = [row for row in rows if row["generation"] == generation]
        entry = {"generation": generation, "images": len(own), "shown": sum("onset" in row for row in own)}
        for name in ("fitness", "score", "rating", "true_response"):
            entry[f"mean_{name}"] = _mean(row.get(name) for row in own)
        result.append(entry)
    return result


def _probes(rows: Sequence[Row]) -> Row:
    """Return the variation of the probes' scores: n, their spread within a probe, their drift per minute."""
    shown = [r for r in rows if r.get("probe") is not None and "onset" in r and not math.isnan(r.get("score", math.nan))]
    scores, onsets, which = (np.array([r[name] for r in shown], float) for name in ("score", "onset", "probe"))
    for probe in set(which):  # about each probe's own mean
        scores[which == probe] -= scores[which == probe].mean()
        onsets[which == probe] -= onsets[which == probe].mean()
    freedom = len(shown) - len(set(which))
    moved = float(onsets @ onsets)
    return {
        "n": len(shown),
        "score_sd": round(math.sqrt(float(scores @ scores) / freedom), 6) if freedom > 0 else None,
        "drift_per_min": round(60 * float(onsets @ scores) / moved, 6) if freedom > 0 and moved > 0 else None,
    }


def _cadence(rows: Sequence[Row]) -> Row:
    """Return onset-to-onset times within generations, s."""
    shown = [row for row in rows if "onset" in row]
    steps = [b["onset"] - a["onset"] for a, b in pairwise(shown) if (a["generation"], a["part"]) == (b["generation"], b["part"])]
    return {
        "n": len(steps),
        "min": min(steps, default=None),
        "p50": float(np.median(steps)) if steps else None,
        "max": max(steps, default=None),
    }
