"""The log -> tables and summary; nothing else is needed for them."""

from __future__ import annotations

import base64
import csv
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.record.log import LOG, parts, read_log
from rtevo.record.waits import held
from rtevo.records import MOTION_COLUMNS, Decision, EventKind, VolumeFlag

__all__ = ["finalise", "floats", "hidden_truth"]

SCHEMA = 1
_OF_THE_LOG = (  # not of the summary
    "seq",
    "type",
    "clock_ns",
    "part",
    "first_volume",
    "decoder_state",
    "sha256",
    "rings",
    "warnings",
    "settings",
    "provenance",
)


_OF_PLACEMENTS = ("attempt", "own_grid", "matrix", "correlation", "overlap", "weight_kept", "expected_error_mm", "verdict")


def floats(text: str) -> NDArray[np.float32]:
    """Read a float32 array as the log holds it."""
    return np.frombuffer(base64.b64decode(text), "<f4")


def _table(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a BIDS-style table: tabs, n/a for what is missing."""

    def cell(value: Any) -> Any:
        return "n/a" if value is None or (isinstance(value, float) and math.isnan(value)) else value

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([cell(row.get(column)) for column in columns] for row in rows)


def _distribution(milliseconds: list[float]) -> dict[str, Any]:
    """Summarise latencies: n, p50, p99, max, rounded to microseconds."""
    if not milliseconds:
        return {"n": 0, "p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"n": len(milliseconds), "p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(max(milliseconds), 3)}


def _volumes(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give what is known of each volume, in run order: of one that came after its gap had been declared, what came."""
    found: dict[int, dict[str, Any]] = {}
    for record in log:
        if record["type"] == "aligned" and (record["index"] not in found or not record["flags"] & VolumeFlag.MISSING):
            found[record["index"]] = record
    return [found[index] for index in sorted(found)]


class _Tables:
    """The records of a session, by what they are about."""

    def __init__(self, log: list[dict[str, Any]]) -> None:
        divided = parts(log)
        self.start: dict[str, Any] = next((r for r in log if r["type"] == "start"), {})
        self.parts = [[r for r in part if r["type"] in ("start", "end")] for part in divided]
        self.end: dict[str, Any] = next((r for r in reversed(divided[-1] if divided else []) if r["type"] == "end"), {})
        self.aligned = _volumes(log)
        self.trials: dict[tuple[int, int], dict[str, Any]] = {}
        self.truth: dict[str, float] = {}
        self.warnings: list[str] = []
        self.placements: list[dict[str, Any]] = []  # that were accepted
        self._told: list[str] = []  # warnings of a part that may have ended without a word
        self.part, self.offset_s = -1, 0.0
        self.trigger_ns: int | None = None
        for record in log:
            self._take(record)
        self.warnings += self._told

    def _take(self, record: dict[str, Any]) -> None:
        kind = record["type"]
        if kind == "start":
            self.part, self.trigger_ns = self.part + 1, None
            self.warnings, self._told = self.warnings + self._told, []
            self.offset_s = record.get("first_volume", 0) * record["tr_s"]
        elif kind == "grid":
            for name in ("shape", "affine"):
                self.start.setdefault(name, record[name])
        elif kind == "placements" and record["decision"] == Decision.ACCEPTED:
            self.placements.append({"part": self.part, **{name: record[name] for name in _OF_PLACEMENTS}})
        elif kind == "events":
            self._event(record)
        elif kind == "truth":
            self.truth.update(record["preferences"])
        elif kind == "end":
            self.warnings, self._told = self.warnings + record.get("warnings", []), []
        elif kind == "lost":
            self.warnings.append(record["text"])
        elif kind in ("warning", "alarm"):
            self._told.append(record["text"])
        elif kind in _OF_TRIALS:
            self._trial(record).update(_OF_TRIALS[kind](record), **{f"{kind}_part": self.part})

    def _trial(self, record: dict[str, Any]) -> dict[str, Any]:
        key = (record["generation"], record["candidate"])
        return self.trials.setdefault(key, {"generation": key[0], "candidate": key[1]})

    def _event(self, event: dict[str, Any]) -> None:
        kind, t_ns = event["kind"], event["t_ns"]
        if kind == EventKind.TRIGGER:  # a second one corrects it, before any image
            self.trigger_ns = t_ns
        elif kind == EventKind.ONSET and self.trigger_ns is not None:
            onset_s = (t_ns - self.trigger_ns) / 1e9 + self.offset_s
            error_s, guess = event["error_ns"] / 1e9, int(event.get("guess", False))
            self._trial(event).update(onset_ns=t_ns, onset=onset_s, onset_error=error_s, guessed=guess, part=self.part)
        elif kind == EventKind.OFFSET and self.trigger_ns is not None:
            trial = self._trial(event)
            if "onset_ns" in trial:
                trial["duration"] = (t_ns - trial["onset_ns"]) / 1e9
                trial["duration_error"] = trial["onset_error"] + event["error_ns"] / 1e9
                trial["guessed"] |= int(event.get("guess", False))
            trial["dropped_frames"] = None if math.isnan(event["value"]) else int(event["value"])
        elif kind == EventKind.RATING:
            trial = self._trial(event)
            trial.update(rating=event["value"], response_time=event["response_time_s"])
            trial["guessed"] = trial.get("guessed", 0) | int(event.get("guess", False))
        elif kind == EventKind.PHYSIOLOGY:
            self._trial(event)["physiology"] = event["value"]

    def add_truth(self) -> None:
        """Lay a simulated participant's hidden preference for each picture beside the images that were shown."""
        for trial in self.trials.values():
            known = self.truth.get(trial.get("sha256", "")[:16])
            if known is not None and "onset" in trial:
                trial["true_response"] = known

    def rows(self) -> list[dict[str, Any]]:
        """One row per image, in the order of presentation; images that were never shown come last."""
        return sorted(self.trials.values(), key=lambda t: (t.get("onset", math.inf), t["generation"], t["candidate"]))


def _fields(record: dict[str, Any], *left_out: str, **renamed: str) -> dict[str, Any]:
    """Give a record's own fields, some of them by another name."""
    own = {k: v for k, v in record.items() if k not in ("seq", "type", "clock_ns", "scores_taken", *left_out)}
    return {renamed.get(k, k): v for k, v in own.items()}


def _asked(record: dict[str, Any]) -> dict[str, Any]:
    fields = _fields(record, scored_ns="parents_scored_ns")
    return {**fields, "probe": None if fields["probe"] < 0 else fields["probe"]}


_OF_TRIALS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "latents": _asked,
    "images": lambda r: _fields(r, "scored_ns", "evolved_ns", embedding="post_embedding"),
    "scores": _fields,
    "fitness": _fields,
}  # records with a row's fields


def _latencies(tables: _Tables) -> dict[str, Any]:
    aligned = [(r["aligned_ns"] - r["closed_ns"]) / 1e6 for r in tables.aligned if not r["flags"] & VolumeFlag.MISSING]
    trials = list(tables.trials.values())
    scored = [(t["scored_ns"] - t["closed_ns"]) / 1e6 for t in trials if t.get("closed_ns") and t.get("scored_ns")]
    first: dict[int, float] = {}
    for trial in trials:
        if trial.get("painted_ns") and trial.get("parents_scored_ns") and trial["images_part"] == trial["latents_part"]:
            waited = (trial["painted_ns"] - trial["parents_scored_ns"]) / 1e6
            first[trial["generation"]] = min(waited, first.get(trial["generation"], math.inf))
    return {
        "file_closed_to_aligned": _distribution(aligned),
        "last_needed_volume_to_score": _distribution(scored),
        "scores_to_first_image": _distribution(list(first.values())),
    }


def _quality(tables: _Tables) -> dict[str, Any]:
    """How good the data were: tSNR, motion, DVARS, spikes, and how reliable the scores."""

    def known(name: str) -> list[float]:
        return [float(r[name]) for r in tables.aligned if r.get(name) is not None and not math.isnan(r[name])]

    tsnr, displacement, dvars = known("tsnr"), known("framewise_displacement_mm"), known("dvars_percent")
    reliability = [t["reliability"] for t in tables.trials.values() if not math.isnan(t.get("reliability", math.nan))]
    return {
        "tsnr": round(tsnr[-1], 2) if tsnr else None,
        "framewise_displacement_mm": {"mean": _mean(displacement), "max": round(max(displacement), 4) if displacement else None},
        "dvars_percent": {"p50": round(float(np.median(dvars)), 4), "max": round(max(dvars), 4)} if dvars else {"p50": None, "max": None},
        "spikes": sum(bool(r["flags"] & VolumeFlag.SPIKE) for r in tables.aligned),
        "score_reliability": round(float(reliability[-1]), 4) if reliability else None,
    }


def _mean(values: Iterable[Any]) -> float | None:
    finite = [float(v) for v in values if v is not None and not math.isnan(v)]
    return round(math.fsum(finite) / len(finite), 6) if finite else None


def _generations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per-generation means of fitness, score, rating and, in a simulation, the true response."""
    result = []
    rows = [row for row in rows if row.get("probe") is None]
    for generation in sorted({row["generation"] for row in rows}):
        own = [row for row in rows if row["generation"] == generation]
        entry = {"generation": generation, "images": len(own), "shown": sum("onset" in row for row in own)}
        for name in ("fitness", "score", "rating", "true_response"):
            entry[f"mean_{name}"] = _mean(row.get(name) for row in own)
        result.append(entry)
    return result


def _probes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How the scores of images that were shown again and again vary: n, their spread within a probe, their drift per minute."""
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


def _cadence(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Onset-to-onset times within generations, s."""
    shown = [row for row in rows if "onset" in row]
    steps = [b["onset"] - a["onset"] for a, b in pairwise(shown) if (a["generation"], a["part"]) == (b["generation"], b["part"])]
    return {
        "n": len(steps),
        "min": min(steps, default=None),
        "p50": float(np.median(steps)) if steps else None,
        "max": max(steps, default=None),
    }


def hidden_truth(out: Path) -> dict[str, float]:
    """Read what a simulated participant thought of each picture, by the first 16 digits of its SHA-256; a line cut short is left out."""
    path = out / "hidden_truth.tsv"
    if not path.exists():
        return {}
    header, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
    names = header.split("\t")
    cells = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    return {row["pixels_sha256"]: float(row["preference"]) for row in cells}


def finalise(out: Path) -> dict[str, Any]:
    """Make the tables and the summary of a session from its log.

    Parameters
    ----------
    out : Path
        The session's folder, with ``record.jsonl`` in it; written to it: ``trials.tsv``, ``motion.tsv``, ``latents.npz``, ``summary.json``.

    Returns
    -------
    dict
        The summary (its schema is in the README).

    Raises
    ------
    DataError
        Where there is no log or it is damaged.
    """
    log = read_log(out / LOG)
    tables = _Tables(log)
    tables.truth.update(hidden_truth(out))
    tables.add_truth()
    rows = tables.rows()
    _write_trials(out, rows, len(tables.parts) > 1)
    _write_motion(out, tables, parts(log))
    flags = [r["flags"] for r in tables.aligned]
    lost = sum(bool(f & VolumeFlag.MISSING) for f in flags)
    unaligned = sum(bool(f & VolumeFlag.UNALIGNED) for f in flags)
    shown = [row for row in rows if "onset" in row]
    summary = {
        "schema": SCHEMA,
        **{k: v for k, v in tables.start.items() if k not in _OF_THE_LOG},
        **{k: v for k, v in tables.end.items() if k not in _OF_THE_LOG},
        "volumes": {
            "received": len(flags) - lost,
            "aligned": len(flags) - lost - unaligned,
            "lost": lost,
            "unaligned": unaligned,
            "late": sum(bool(f & VolumeFlag.LATE) for f in flags),
        },
        "images": {
            "painted": sum("painted_ns" in row for row in rows),
            "shown": len(shown),
            "times_held": len(held(log)),
            "cadence_s": _cadence(rows),
        },
        "generations": _generations(rows),
        "probes": _probes(rows),
        "placements": tables.placements,
        "quality": _quality(tables),
        "latencies_ms": _latencies(tables),
        "rings": tables.end.get("rings", {}),
        "warnings": tables.warnings,
    }
    if len(tables.parts) > 1:
        summary["parts"] = [_part(records) for records in tables.parts]
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _part(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Say when a part of a session began and how it ended; ``interrupted``: without a word."""
    start = records[0]
    end = records[-1] if records[-1]["type"] == "end" else {}
    return {
        "started": start.get("started"),
        "ended": end.get("ended"),
        "status": end.get("status", "interrupted"),
        "first_volume": start.get("first_volume", 0),
        "decoder_state": start.get("decoder_state", "new"),
    }


def _write_motion(out: Path, tables: _Tables, divided: list[list[dict[str, Any]]]) -> None:
    firsts = [own[0].get("first_volume", 0) for own in divided]
    rows = [
        {
            "volume": r["index"],
            "onset": round(r["index"] * tables.start["tr_s"], 6),
            "acquired": r["acquired_s"],
            "flags": r["flags"],
            **dict(zip(MOTION_COLUMNS, r["motion"], strict=True)),
            "framewise_displacement": r["framewise_displacement_mm"],
            "dvars": r["dvars_percent"],
            "tsnr": r["tsnr"],
            "part": bisect_right(firsts, r["index"]) - 1,
        }
        for r in tables.aligned
    ]
    columns = ["volume", "onset", "acquired", "flags", *MOTION_COLUMNS, "framewise_displacement", "dvars", "tsnr"]
    _table(out / "motion.tsv", columns + ["part"] * (len(divided) > 1), rows)


def _write_trials(out: Path, rows: list[dict[str, Any]], with_parts: bool) -> None:
    evolved = [row for row in rows if "latent" in row]
    latents = np.array([floats(row["latent"]) for row in evolved], np.float32)
    latents = latents if evolved else np.zeros((0, 0), np.float32)
    for row, latent in zip(evolved, latents, strict=True):
        row.update({f"x{i}": float(x) for i, x in enumerate(latent)})
    columns = ["onset", "duration", "onset_error", "duration_error", "guessed", "dropped_frames", "generation", "candidate", "probe"]
    columns += ["rating", "response_time", "score", "score_se", "volumes_used", "fitness"]
    columns += [name for name in ("physiology", "true_response") if any(name in row for row in rows)] + ["part"] * with_parts
    _table(out / "trials.tsv", [*columns, *(f"x{i}" for i in range(latents.shape[1]))], rows)
    size = len(floats(evolved[0]["embedding"])) if evolved else 0
    nothing = np.full(size, np.nan, np.float32)
    np.savez_compressed(
        out / "latents.npz",
        generation=np.array([row["generation"] for row in evolved], np.int32),
        candidate=np.array([row["candidate"] for row in evolved], np.int32),
        latents=latents,
        embeddings=np.array([floats(row["embedding"]) for row in evolved], np.float32).reshape(len(evolved), size),
        post_embeddings=np.array(
            [floats(row["post_embedding"]) if "post_embedding" in row else nothing for row in evolved], np.float32
        ).reshape(len(evolved), size),
    )
