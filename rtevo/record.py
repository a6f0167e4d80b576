"""What a run leaves behind: an append-only log, and the tables that are rebuilt from it.

The recorder is an observer of every ring: it can hold up nobody, and is told where it has missed something. Each line of ``record.jsonl``
is the CRC-32 of what follows (8 hex digits), a space, and a JSON object with ``seq``, ``type`` (the ring's name, ``start`` or ``end``)
and the fields of the ring's slot; float32 arrays are base64 of their little-endian bytes, so that nothing is rounded. :func:`finalise`
makes ``trials.tsv``, ``motion.tsv``, ``latents.npz`` and ``summary.json`` from the log alone, also after a crash.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError
from rtevo.records import MOTION_COLUMNS, EventKind, VolumeFlag

__all__ = ["LogWriter", "Recorder", "compact", "finalise", "image_path", "read_log", "volume_path"]

SCHEMA = 1


class LogWriter:
    """Append to a session's log.

    Parameters
    ----------
    path : Path
        ``record.jsonl``; made if it is not there, continued if it is. A last line cut short by a crash is removed.
    """

    def __init__(self, path: Path) -> None:
        self.seq = 0
        if path.exists():
            good, self.seq = 0, 0
            with path.open("rb") as file:
                for line in file:
                    if _parse(line) is None:
                        break
                    good += len(line)
                    self.seq += 1
            os.truncate(path, good)
        self._file = path.open("ab")

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one record; it is on disk after the next :meth:`sync`."""
        text = json.dumps({"seq": self.seq, "type": kind, **fields}, allow_nan=True).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self.seq += 1

    def sync(self) -> None:
        """Bring everything written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        self.sync()
        self._file.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Give a log line's record, or None where it is damaged or cut short."""
    try:
        crc, text = line.rstrip(b"\n").split(b" ", 1)
        if not line.endswith(b"\n") or int(crc, 16) != zlib.crc32(text):
            return None
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a session's log; a last line that was cut short is left out.

    Raises
    ------
    DataError
        Where there is no log, or a line other than the last is damaged.
    """
    if not path.exists():
        raise DataError(f"{path}: expected the log of a session, found no such file")
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for i, line in enumerate(lines):
        record = _parse(line)
        if record is None:
            if i < len(lines) - 1:
                raise DataError(f"{path} line {i + 1}: damaged (its checksum does not fit)")
            break
        records.append(record)
    return records


def image_path(out: Path, generation: int, candidate: int) -> Path:
    """Where a picture is saved."""
    return out / "images" / f"generation-{generation:02d}" / f"candidate-{candidate:02d}.png"


def volume_path(out: Path, index: int, kind: str = "volumes") -> Path:
    """Where a volume is saved; `kind` is ``volumes`` (as it came) or ``aligned``."""
    return out / kind / f"volume-{index:05d}.nii.gz"


def compact(data: NDArray[np.float32]) -> NDArray[Any]:
    """Give a volume in the smallest of int16, uint16 and float32 that holds every value exactly."""
    if np.isfinite(data).all() and np.array_equal(data, np.rint(data)):
        low, high = float(data.min()), float(data.max())
        for kind in (np.int16, np.uint16):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return data.astype(kind)
    return data


def _plain(value: Any) -> Any:
    """Turn a field of a slot into what JSON holds."""
    if isinstance(value, np.ndarray):
        return base64.b64encode(value.tobytes()).decode() if value.dtype == np.float32 else value.tolist()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


def _floats(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), "<f4")


class Recorder:
    """Write slots to the log, pictures to PNG and volumes to NIfTI.

    Parameters
    ----------
    out : Path
        The session's folder.
    affine : ndarray (4, 4)
        Of the volumes.
    save_raw : bool
        Whether to keep volumes as they came; aligned ones are kept where they come with data.
    """

    def __init__(self, out: Path, affine: NDArray[np.float64], save_raw: bool = False) -> None:
        self.out, self.affine, self.save_raw = out, affine, save_raw
        self.log = LogWriter(out / "record.jsonl")

    def take(self, ring: str, slot: Any) -> None:
        """Record one slot of a ring; `slot` is a copy that nobody writes to."""
        fields = {name: _plain(slot[name]) for name in slot.dtype.names if name not in ("pixels", "data")}
        if ring == "images":
            pixels = np.array(slot["pixels"])
            fields["sha256"] = hashlib.sha256(pixels.tobytes()).hexdigest()
            self._save_image(image_path(self.out, fields["generation"], fields["candidate"]), pixels)
        elif ring == "volumes" and self.save_raw and not fields["flags"] & VolumeFlag.MISSING:
            self._save_volume(volume_path(self.out, fields["index"]), np.array(slot["data"]))
        elif ring == "aligned" and "data" in slot.dtype.names:
            self._save_volume(volume_path(self.out, fields["index"], "aligned"), np.array(slot["data"]))
        self.log.append(ring, fields)

    def _save_image(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        from PIL import Image

        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)

    def _save_volume(self, path: Path, data: NDArray[np.float32]) -> None:
        import nibabel

        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}")  # a file that has its name is whole
        nibabel.save(nibabel.Nifti1Image(compact(data), self.affine), part)
        part.replace(path)


# --- from the log to tables ----------------------------------------------------------------------------------------------------------


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


class _Tables:
    """The records of a session, by what they are about."""

    def __init__(self, log: list[dict[str, Any]]) -> None:
        self.start: dict[str, Any] = next((r for r in log if r["type"] == "start"), {})
        self.end: dict[str, Any] = next((r for r in reversed(log) if r["type"] == "end"), {})
        self.aligned = sorted((r for r in log if r["type"] == "aligned"), key=lambda r: r["index"])
        self.trials: dict[tuple[int, int], dict[str, Any]] = {}
        self.trigger_ns: int | None = None
        self.held = 0
        for record in log:
            if record["type"] in ("latents", "images", "scores", "fitness"):
                trial = self._trial(record)
                fields = {k: v for k, v in record.items() if k not in ("seq", "type")}
                if record["type"] == "images":
                    fields["post_embedding"] = fields.pop("embedding")
                if record["type"] != "latents":
                    fields = {k: v for k, v in fields.items() if k not in ("evolved_ns",)}
                if record["type"] == "images":
                    fields.pop("scored_ns", None)
                if record["type"] == "latents":
                    fields["probe"] = None if fields["probe"] < 0 else fields["probe"]
                    fields["parents_scored_ns"] = fields.pop("scored_ns")
                trial.update(fields)
            elif record["type"] == "events":
                self._event(record)

    def _trial(self, record: dict[str, Any]) -> dict[str, Any]:
        key = (record["generation"], record["candidate"])
        return self.trials.setdefault(key, {"generation": key[0], "candidate": key[1]})

    def _event(self, event: dict[str, Any]) -> None:
        kind, t_ns = event["kind"], event["t_ns"]
        if kind == EventKind.TRIGGER and self.trigger_ns is None:
            self.trigger_ns = t_ns
        elif kind == EventKind.ONSET and self.trigger_ns is not None:
            self._trial(event).update(onset_ns=t_ns, onset=(t_ns - self.trigger_ns) / 1e9, onset_error=event["error_ns"] / 1e9)
        elif kind == EventKind.OFFSET and self.trigger_ns is not None:
            trial = self._trial(event)
            trial["duration"] = (t_ns - trial["onset_ns"]) / 1e9 if "onset_ns" in trial else None
            trial["dropped_frames"] = None if math.isnan(event["value"]) else int(event["value"])
        elif kind == EventKind.RATING:
            self._trial(event).update(rating=event["value"], response_time=event["response_time_s"])
        elif kind == EventKind.PHYSIOLOGY:
            self._trial(event)["physiology"] = event["value"]
        elif kind == EventKind.FIXATION:
            self.held += 1

    def rows(self) -> list[dict[str, Any]]:
        """One row per image, in the order of presentation; images that were never shown come last."""
        return sorted(self.trials.values(), key=lambda t: (t.get("onset", math.inf), t["generation"], t["candidate"]))


def _latencies(tables: _Tables) -> dict[str, Any]:
    aligned = [(r["aligned_ns"] - r["closed_ns"]) / 1e6 for r in tables.aligned if not r["flags"] & VolumeFlag.MISSING]
    trials = list(tables.trials.values())
    scored = [(t["scored_ns"] - t["closed_ns"]) / 1e6 for t in trials if t.get("closed_ns") and t.get("scored_ns")]
    first: dict[int, float] = {}
    for trial in trials:
        if trial.get("painted_ns") and trial.get("parents_scored_ns"):
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
    steps = [b["onset"] - a["onset"] for a, b in pairwise(shown) if a["generation"] == b["generation"]]
    return {
        "n": len(steps),
        "min": min(steps, default=None),
        "p50": float(np.median(steps)) if steps else None,
        "max": max(steps, default=None),
    }


def _add_truth(out: Path, rows: list[dict[str, Any]]) -> None:
    """Lay a simulated participant's hidden truth beside the images: the k-th picture it saw is the k-th that was shown."""
    path = out / "hidden_truth.tsv"
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        truth = [float(row["preference"]) for row in csv.DictReader(file, delimiter="\t")]
    for row, value in zip((row for row in rows if "onset" in row), truth, strict=False):
        row["true_response"] = value


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
    tables = _Tables(read_log(out / "record.jsonl"))
    rows = tables.rows()
    _add_truth(out, rows)
    _write_trials(out, rows)
    motion = [
        {
            "volume": r["index"],
            "onset": round(r["index"] * tables.start["tr_s"], 6),
            "acquired": r["acquired_s"],
            "flags": r["flags"],
            **dict(zip(MOTION_COLUMNS, r["motion"], strict=True)),
            "framewise_displacement": r["framewise_displacement_mm"],
            "dvars": r["dvars_percent"],
            "tsnr": r["tsnr"],
        }
        for r in tables.aligned
    ]
    _table(out / "motion.tsv", ["volume", "onset", "acquired", "flags", *MOTION_COLUMNS, "framewise_displacement", "dvars", "tsnr"], motion)
    flags = [r["flags"] for r in tables.aligned]
    lost = sum(bool(f & VolumeFlag.MISSING) for f in flags)
    unaligned = sum(bool(f & VolumeFlag.UNALIGNED) for f in flags)
    shown = [row for row in rows if "onset" in row]
    summary = {
        "schema": SCHEMA,
        **{k: v for k, v in tables.start.items() if k not in ("seq", "type")},
        **{k: v for k, v in tables.end.items() if k not in ("seq", "type", "rings", "warnings")},
        "volumes": {"received": len(flags) - lost, "aligned": len(flags) - lost - unaligned, "lost": lost, "unaligned": unaligned},
        "images": {
            "painted": sum("painted_ns" in row for row in rows),
            "shown": len(shown),
            "times_held": tables.held,
            "cadence_s": _cadence(rows),
        },
        "generations": _generations(rows),
        "probes": _probes(rows),
        "quality": _quality(tables),
        "latencies_ms": _latencies(tables),
        "rings": tables.end.get("rings", {}),
        "warnings": tables.end.get("warnings", []),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _write_trials(out: Path, rows: list[dict[str, Any]]) -> None:
    evolved = [row for row in rows if "latent" in row]
    latents = np.array([_floats(row["latent"]) for row in evolved], np.float32)
    latents = latents if evolved else np.zeros((0, 0), np.float32)
    for row, latent in zip(evolved, latents, strict=True):
        row.update({f"x{i}": float(x) for i, x in enumerate(latent)})
    columns = ["onset", "duration", "onset_error", "dropped_frames", "generation", "candidate", "probe", "rating", "response_time"]
    columns += ["score", "score_se", "volumes_used", "fitness"]
    columns += [name for name in ("physiology", "true_response") if any(name in row for row in rows)]
    _table(out / "trials.tsv", [*columns, *(f"x{i}" for i in range(latents.shape[1]))], rows)
    size = len(_floats(evolved[0]["embedding"])) if evolved else 0
    nothing = np.full(size, np.nan, np.float32)
    np.savez_compressed(
        out / "latents.npz",
        generation=np.array([row["generation"] for row in evolved], np.int32),
        candidate=np.array([row["candidate"] for row in evolved], np.int32),
        latents=latents,
        embeddings=np.array([_floats(row["embedding"]) for row in evolved], np.float32).reshape(len(evolved), size),
        post_embeddings=np.array(
            [_floats(row["post_embedding"]) if "post_embedding" in row else nothing for row in evolved], np.float32
        ).reshape(len(evolved), size),
    )
