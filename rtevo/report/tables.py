"""The page's tables: key figures, what was late or missing, rings, provenance, settings."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from rtevo.config import Config
from rtevo.decode.score import spearman_brown
from rtevo.records import VolumeFlag
from rtevo.report.gather import Session, means
from rtevo.report.localizer import task_in_words

__all__ = [
    "RING_COLUMNS",
    "decoder_today",
    "figures_of",
    "heading",
    "late",
    "maps_of",
    "provenance",
    "rings",
    "settings",
    "steps",
    "warnings",
]

RING_COLUMNS = ["ring", "messages", "kB each", "writer µs", "reader µs", "wake-up µs: mean", "worst", "writer waited", "lost by observers"]
MANY = 20  # volumes that are named


def heading(session: Session) -> str:
    """One line about a run."""
    summary = session.summary
    v, i, c = summary["volumes"], summary["images"], summary["images"]["cadence_s"]
    pace = f", every {c['p50']:.3f} s" if c.get("p50") else ""
    return (
        f"{v['received']} volumes ({v['lost']} lost, {v['unaligned']} unaligned) at TR {summary['tr_s']:g} s  |  "
        f"{i['shown']} images shown{pace}  |  seed {summary['seed']}  |  rtevo {summary['rtevo']}"
    )


def figures_of(session: Session) -> list[tuple[str, str, str]]:
    """Key figures: what, value, remark."""
    summary, quality = session.summary, session.summary.get("quality", {})
    v, i = summary["volumes"], summary["images"]
    fd = quality.get("framewise_displacement_mm", {})
    found = [
        ("Volumes", f"{v['received']}", f"{v['lost']} lost, {v['unaligned']} unaligned, {quality.get('spikes', 0)} spikes"),
        ("Images shown", f"{i['shown']}", f"of {i['painted']} painted; fixation held {len(session.held_s)} times"),
        ("Onset to onset", f"{i['cadence_s']['p50']:.3f} s" if i["cadence_s"].get("p50") else "–", _spread(i["cadence_s"])),
        ("Framewise displacement", f"{fd['mean']:.2f} mm" if fd.get("mean") is not None else "–", _largest(fd, "mm")),
        ("tSNR", f"{quality['tsnr']:.0f}" if quality.get("tsnr") else "–", f"median in {session.mask}"),
    ]
    if session.localizer:
        return [*found, task_in_words(session)]
    where, mean, se = means(session.evolved, "fitness", session.generations)
    if len(where) > 1:
        gain, error = mean[-1] - mean[0], math.hypot(*np.nan_to_num([se[0], se[-1]]))
        found.append(
            (f"Fitness, generation {where[0]} to {where[-1]}", f"{gain:+.2f} ± {error:.2f}", f"from {mean[0]:+.2f} to {mean[-1]:+.2f}")
        )
    for name, column in maps_of(session):
        where, mean, se = means(session.evolved, column, session.generations)
        if len(where) > 1:
            gain, error = mean[-1] - mean[0], math.hypot(*np.nan_to_num([se[0], se[-1]]))
            found.append((f"Map {name}, the same", f"{gain:+.2f} ± {error:.2f}", f"from {mean[0]:+.2f} to {mean[-1]:+.2f}"))
    if quality.get("score_reliability") is not None:
        found.append(("Reliability of scores", f"{quality['score_reliability']:.2f}", "expected squared correlation with the responses"))
    return found


def maps_of(session: Session) -> list[tuple[str, str]]:
    """Names of the maps of an objective whose scores may be shown, and their columns in the table of the trials; none for one map."""
    names = session.trials[0] if session.trials and not session.blinded else {}
    found = [name for name in names if name.startswith("score_") and f"{name}_se" in names]
    return [(name.removeprefix("score_"), name) for name in found]


def decoder_today(session: Session) -> str:
    """Report in one sentence how good the decoder was in this run; empty if that is not known or hidden.

    Beside the model's own reliability stands that of the images that were shown again and again: the means of their odd and of their even
    showings are correlated over the images, and stepped up to all showings' (so it is that of a mean of several scores).
    """
    own = session.summary.get("quality", {}).get("score_reliability")
    if own is None or session.blinded:
        return ""
    word = next(word for least, word in ((0.7, "well"), (0.4, "fairly well"), (0.2, "weakly"), (-math.inf, "hardly")) if own >= least)
    halves = _repeated(session)
    repeated = "" if math.isnan(halves) else f"; split-half reliability of repeated images: {halves:.2f}"
    return (
        f"Today the decoder separated images {word}: by its own model its scores share {max(own, 0):.0%} of their variance with the "
        f"responses (reliability {own:.2f}{repeated})."
    )


def _repeated(session: Session) -> float:
    """Split-half reliability of repeated images' scores; NaN for fewer than three images with two scores."""
    shown: dict[int, list[float]] = {}
    for trial in sorted((t for t in session.probes if t.get("score") is not None), key=lambda t: t.get("onset") or 0.0):
        shown.setdefault(int(trial["probe"]), []).append(float(trial["score"]))
    pairs = np.array([(np.mean(each[::2]), np.mean(each[1::2])) for each in shown.values() if len(each) > 1])
    if len(pairs) < 3 or not (np.ptp(pairs, axis=0) > 0).all():
        return math.nan
    return spearman_brown(float(np.corrcoef(pairs.T)[0, 1]))


def _spread(cadence: Mapping[str, Any]) -> str:
    return f"median; {cadence['min']:.3f} to {cadence['max']:.3f}" if cadence.get("p50") else ""


def _largest(values: Mapping[str, Any], unit: str) -> str:
    return f"mean; largest {values['max']:.2f} {unit}" if values.get("max") is not None else ""


def steps(session: Session) -> list[list[str]]:
    """Latencies: step, n, median, 99th percentile, largest, deadline, late."""
    rows = []
    for each in session.latencies:
        p50, p99, worst = np.percentile(each.ms, [50, 99, 100])
        bound = f"{each.deadline_ms:,.0f}" if math.isfinite(each.deadline_ms) else "none (time waits)"
        rows.append([each.name, f"{len(each.ms)}", *(f"{x:,.1f}" for x in (p50, p99, worst)), bound, f"{each.late}"])
    return rows


def late(session: Session) -> list[tuple[str, str]]:
    """Return what was missing, late or left out."""
    found = []
    for flag, text in (
        (VolumeFlag.MISSING, "volumes that never arrived"),
        (VolumeFlag.LATE, "volumes that arrived after they had been declared missing"),
        (VolumeFlag.UNALIGNED, "volumes that could not be aligned"),
        (VolumeFlag.SPIKE, "volumes after a jump of the head"),
    ):
        indices = session.flagged(flag)
        named = ", ".join(map(str, indices[:MANY])) + (", …" if len(indices) > MANY else "")
        found.append((text, f"{len(indices)}" + (f": {named}" if indices else "")))
    held = ", ".join(f"{t:.1f}" for t in session.held_s[:MANY]) + (", …" if len(session.held_s) > MANY else "")
    found.append(("times that fixation was held because no image was ready", f"{len(session.held_s)}" + (f": at {held} s" if held else "")))
    unseen = sum(t["onset"] is None for t in session.trials)
    found.append(("images that were never shown", f"{unseen}"))
    dropped = sum(int(t["dropped_frames"]) for t in session.trials if t.get("dropped_frames") is not None)
    found.append(("frames that the screen dropped", f"{dropped}"))
    return found


def _cost(end: Mapping[str, Any]) -> str:
    if "overhead_p50_ns" not in end:
        return "not recorded"
    return f"{end['overhead_p50_ns'] / 1e3:,.0f} / {end['overhead_p99_ns'] / 1e3:,.0f}"


def rings(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the cost of the rings: the time in each ring's own code, and its readers' time to wake up.

    Sessions of older versions did not count all of it.
    """
    rows = []
    for name, ring in found.items():
        readers = [r for r in ring.get("readers", []) if r.get("messages", r.get("consumed", 0))]
        slowest = max(readers, key=lambda r: r.get("overhead_p50_ns", -1), default=None)
        latest = max(readers, key=lambda r: r.get("wake_up_max_ns", 0), default=None)
        waits = sum(r.get("waits", 0) for r in readers)
        rows.append(
            [
                name,
                f"{ring['published']}",
                f"{ring['slot_bytes'] / 1e3:.3g}",
                _cost(ring) if ring["published"] else "–",
                f"{_cost(slowest)} ({slowest['name']})" if slowest else "–",
                f"{sum(r.get('wake_up_ns', 0) for r in readers) / waits / 1e3:,.0f} ({waits} waits)" if waits else "–",
                f"{latest.get('wake_up_max_ns', 0) / 1e3:,.0f} ({latest['name']})" if latest and waits else "–",
                f"{ring.get('waits', 0)}",
                f"{sum(r.get('overruns', 0) for r in ring.get('readers', []))}",
            ]
        )
    return rows


def warnings(session: Session) -> list[str]:
    """Return the operator's warnings; of those that differ in numbers only, the first, and their number."""
    texts = [w if isinstance(w, str) else str(w.get("text", w)) for w in session.summary.get("warnings", [])]
    alike = Counter(re.sub(r"\d+", "0", text) for text in texts)
    first = {re.sub(r"\d+", "0", text): text for text in reversed(texts)}
    return [first[kind] + (f" ({n} like this)" if n > 1 else "") for kind, n in alike.items()]


def provenance(session: Session) -> list[tuple[str, str]]:
    """Versions, hashes, seed and machine."""
    found, summary = session.provenance, session.summary
    rows = [
        ("started, ended", f"{summary.get('started', '?')}, {summary.get('ended', 'not known')}"),
        ("status", f"{summary.get('status', 'unfinished')}" + (f": {summary['reason']}" if summary.get("reason") else "")),
        ("participant, session, run", ", ".join(str(session.settings["session"][k]) for k in ("participant", "session", "run"))),
        ("seed", str(summary["seed"])),
        ("rtevo, Python", f"{summary['rtevo']}, {found.get('python', '?')}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in found.get("packages", {}).items()) or "not recorded"),
        ("linear algebra", "; ".join(found.get("blas", [])) or "not recorded"),
        ("machine", f"{found.get('platform', '?')}; {found.get('processor', 'processor not recorded')}; {found.get('cpus', '?')} cores"),
        ("memory", f"{found['memory_bytes'] / 1e9:.1f} GB" if "memory_bytes" in found else "not recorded"),
        ("GPU", "; ".join(found.get("gpus", [])) or "none"),
        ("generator", session.painter or "not recorded"),
        ("presenter", session.presenter or "not recorded"),
    ]
    for k, part in enumerate(summary.get("parts", [])):
        rows.append((f"part {k}", f"{part['started']} to {part['ended'] or '?'}, {part['status']}; first volume {part['first_volume']}"))
    return rows + [(f"SHA-256 of the {name.replace('_', ' ')}", digest) for name, digest in found.get("sha256", {}).items()]


def settings(session: Session) -> list[tuple[str, str, str, bool]]:
    """All settings: section, key, value, and whether it is not the default."""
    usual = asdict(Config())
    return [
        (
            section,
            key,
            str(value),
            value != (list(usual[section].get(key)) if isinstance(usual[section].get(key), tuple) else usual[section].get(key)),
        )
        for section, part in session.settings.items()
        for key, value in ((k, list(v) if isinstance(v, tuple) else v) for k, v in part.items())
    ]
