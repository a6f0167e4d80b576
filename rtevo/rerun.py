"""A recorded session computed again: ``python -m rtevo.run --rerun OUT``.

From the volumes as they came and the recorded events, motion, scores, fitness and what evolution asks for are computed anew, in one process
and without a clock. With the session's own settings, and the version of rtevo that recorded it, all of it is the same to the last bit;
with others (another decoder, response, strategy) what comes out is compared with what was recorded: the images that were shown stay the
same, their scores and what would have been selected and asked for do not.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo import __version__
from rtevo.command import say
from rtevo.config import Config
from rtevo.errors import ConfigError, DataError
from rtevo.record import (
    LOG,
    AlignedRecord,
    FitnessRecord,
    ImageRecord,
    LatentRecord,
    LogWriter,
    Record,
    RecordedSession,
    ScoreRecord,
    VolumeRecord,
    image_path,
    volume_path,
)
from rtevo.records import VolumeFlag
from rtevo.resume import gone
from rtevo.stages.history import MEASURED, Past, go_through, measured

if TYPE_CHECKING:
    from rtevo.decode import Score
    from rtevo.stages.decoding import Aligned

__all__ = ["rerun"]

INK, ACCENT, SECOND = "#1b1f24", "#0b6e75", "#c2571a"
_AS_RECORDED = {"evolution": ("schedule", "population", "generations", "probe_every", "latent_size", "pca"), "acquisition": ("tr_s",)}
Key = tuple[int, int]


def rerun(out: Path, recorded: Config, config: Config, into: Path) -> dict[str, Any]:
    """Compute a session again.

    Parameters
    ----------
    out : Path
        The session's folder, with its raw volumes.
    recorded, config : Config
        The session's settings, and those to use now.
    into : Path
        New folder: gets a log with what was computed in place of what was recorded, the tables that follow from it, and ``rerun.json``,
        ``rerun.tsv``, ``rerun.npz`` (latents asked for) and ``rerun.png``.

    Returns
    -------
    dict
        The comparison, as in ``rerun.json``.

    Raises
    ------
    RtevoError
        The session cannot be computed again, or not with these settings.
    """
    session = RecordedSession(out)
    changed = _changed(recorded, config)
    _check(session, recorded, config)
    from threadpoolctl import threadpool_limits

    into.mkdir(parents=True)
    with threadpool_limits(1):  # as in a session: sums in another order differ in their last bit
        decoded = _decode(session, config)
        past = _evolve(session, config, decoded)
    _write_log(session.log, decoded, past, into)
    now = RecordedSession(into)
    now.save()
    return _compare(session, now, past, changed)


def _changed(recorded: Config, config: Config) -> list[str]:
    """Name the settings that are not the session's own, with both values."""
    before, now = asdict(recorded), asdict(config)
    return [
        f"[{section}] {key}: {before[section][key]!r} -> {value!r}"
        for section, own in now.items()
        for key, value in own.items()
        if value != before[section][key] and (section, key) != ("record", "out")
    ]


def _check(session: RecordedSession, recorded: Config, config: Config) -> None:
    out, before, now = session.out, asdict(recorded), asdict(config)
    fixed = [(s, k) for s, keys in _AS_RECORDED.items() for k in keys if before[s][k] != now[s][k]]
    if fixed:
        raise ConfigError(
            [f"[{s}] {k}: expected {before[s][k]!r} as in the session that is computed again, got {now[s][k]!r}" for s, k in fixed]
        )
    absent = [index for index in session.absent if index not in session.unsaved]
    if not session.came:
        raise DataError(f"--rerun {out}: expected at least one volume, the session recorded none")
    if absent:
        raise DataError(
            f"--rerun {out}: {len(absent)} of {len(session.came)} volumes as they came are not there (first: "
            f'{volume_path(out, absent[0])}); sessions keep them with [record] save_volumes = "raw"'
        )
    if session.unsaved:
        say(f"--rerun {out}: {gone(session.unsaved)}")


# --- decoding ------------------------------------------------------------------------------------------------------------------------


class _Decoded:
    """What decoding gives, by the number of the record that it follows."""

    def __init__(self) -> None:
        self.records: dict[int, list[Record]] = {}
        self.scores: list[tuple[int, Score]] = []  # with the number of the volume, counted from 0, after which it came


def _decode(session: RecordedSession, config: Config) -> _Decoded:
    from rich.progress import track

    from rtevo.decode import Decoder
    from rtevo.realign import warm_up
    from rtevo.stages.decoding import Again, Decoding
    from rtevo.stages.placing import Hints

    warm_up()
    folder = Path(config.decoder.folder) if config.decoder.folder else session.out / "decoder"
    decoder, tr_s = Decoder.load(folder, config.decoder.name or None), session.start.tr_s
    hints = Hints.of(config, decoder)
    recorded = {(r.index, r.flags & VolumeFlag.LATE): r for r in session.records(AlignedRecord)}  # a gap, and what came late
    found, volume = _Decoded(), -1
    again = Again(session.out, session.log, lambda first, decide: Decoding(config, decoder, tr_s, first, decide, hints))
    for record, aligned, scores, reliability in track(again, "computing", again.volumes, transient=True):
        own = found.records.setdefault(record.seq, [])
        if aligned is not None:
            volume += 1
            assert isinstance(record, VolumeRecord)
            own.append(_aligned(aligned, record, recorded.get((aligned.index, aligned.flags & VolumeFlag.LATE))))
        for score in scores:
            found.scores.append((volume, score))
            own.append(
                ScoreRecord(
                    clock_ns=record.clock_ns,
                    generation=score.key[0],
                    candidate=score.key[1],
                    revision=score.revision,
                    volumes_used=score.volumes_used,
                    score=score.score,
                    score_se=score.score_se,
                    reliability=reliability,
                    onset_s=score.onset_s,
                )
            )
    again.decoding.close()
    return found


def _aligned(aligned: Aligned, volume: VolumeRecord, recorded: AlignedRecord | None) -> AlignedRecord:
    """The record of a volume that was aligned again, with the times at which it was in the session."""
    times = recorded or replace(AlignedRecord(), **{name: getattr(volume, name) for name in ("acquired_s", "closed_ns", "ingested_ns")})
    return replace(
        times,
        clock_ns=volume.clock_ns,
        index=aligned.index,
        flags=aligned.flags,
        motion=aligned.motion.tolist(),
        framewise_displacement_mm=aligned.displacement_mm,
        dvars_percent=aligned.dvars_percent,
        tsnr=aligned.tsnr,
        aligned_ns=times.aligned_ns or volume.ingested_ns,
    )


# --- evolution -----------------------------------------------------------------------------------------------------------------------


def _evolve(session: RecordedSession, config: Config, decoded: _Decoded) -> Past:
    """Tell a fresh evolution the new scores, in the order in which they would have come."""
    from rtevo.latent import LatentSpace
    from rtevo.stages import evolution

    log, space = session.log, LatentSpace.load(session.out / "latent_space.npz")
    condition = evolution.check(config, space)
    images = session.records(ImageRecord) if config.evolution.use_post_encodings else []
    place = {(r.generation, r.candidate): space.to_latent(r.embedding[np.newaxis])[0] for r in images}
    told: Sequence[tuple[Key, float, float]] = measured(log, condition)
    taken: Callable[[int], int] = _same
    if condition not in MEASURED:
        names = [(r.generation, r.candidate, r.revision) for r in session.records(ScoreRecord)]
        told = [(score.key, score.score, score.score_se) for _, score in decoded.scores]
        if names != [(*score.key, score.revision) for _, score in decoded.scores]:
            taken = _by_volumes(log, [volume for volume, _ in decoded.scores])
    try:
        return go_through(evolution.make_course(config, condition, space), log, told, place, taken)
    except ValueError as problem:
        raise ConfigError(f"--rerun {session.out}: evolution with these settings does not fit the recorded images: {problem}") from None


def _same(recorded: int) -> int:
    return recorded


def _by_volumes(log: Sequence[Record], volumes: list[int]) -> Callable[[int], int]:
    """Give the function from the number of recorded scores to that of new ones that were there with the same volume."""
    at, last = [-1], -1
    for record in log:
        last += isinstance(record, AlignedRecord)
        if isinstance(record, ScoreRecord):
            at.append(last)
    return lambda recorded: bisect_right(volumes, at[min(recorded, len(at) - 1)])


def _write_log(log: Sequence[Record], decoded: _Decoded, past: Past, into: Path) -> None:
    """Write the session's log with what was computed in place of what was recorded; all else as it is."""
    fitness = [
        FitnessRecord(
            clock_ns=log[-1].clock_ns,
            generation=told.generation,
            candidate=told.candidate,
            fitness=told.fitness,
            fitness_se=told.fitness_se,
            scores_taken=number,
            given_up=int(given_up),
        )
        for told, number, given_up in past.steps
    ]
    with LogWriter(into / LOG) as new:
        for record in log:
            before = [record] if isinstance(record, VolumeRecord) else []
            after = [] if isinstance(record, (AlignedRecord, ScoreRecord, FitnessRecord, VolumeRecord)) else [record]
            for own in [*before, *decoded.records.get(record.seq, []), *(fitness if record is log[-1] else []), *after]:
                new.add(own)


# --- comparison ----------------------------------------------------------------------------------------------------------------------


def _rows(session: RecordedSession) -> dict[Key, dict[str, float]]:
    """What is known of each candidate, NaN for what is not; probes are left out."""
    shown = [row for row in session.rows if row.get("probe") is None]
    names = ("score", "score_se", "fitness")
    return {(row["generation"], row["candidate"]): {name: float(row.get(name, math.nan)) for name in names} for row in shown}


def _selected(rows: dict[Key, dict[str, float]]) -> set[Key]:
    """The better half of each generation: those whose fitness is above its median."""
    chosen: set[Key] = set()
    for generation in {g for g, _ in rows}:
        own = {key: row["fitness"] for key, row in rows.items() if key[0] == generation and not math.isnan(row["fitness"])}
        if own:
            chosen |= {key for key, value in own.items() if value > np.median(list(own.values()))}
    return chosen


def _compare(session: RecordedSession, again: RecordedSession, past: Past, changed: list[str]) -> dict[str, Any]:
    from scipy.stats import spearmanr

    out, into = session.out, again.out
    before, now = _rows(session), _rows(again)
    keys = sorted(before)
    pairs = np.array([[before[key]["score"], now[key]["score"]] for key in keys]).reshape(-1, 2)
    both = np.isfinite(pairs).all(axis=1)
    chosen = _selected(before), _selected(now)
    asked = {(r.generation, r.candidate): r.latent for r in past.asked}
    shown = {(r.generation, r.candidate): r.latent for r in session.records(LatentRecord)}
    alike = {key: _cosine(asked[key], shown[key]) for key in shown if key in asked and key in before}
    enough = both.sum() >= 3 and np.ptp(pairs[both], axis=0).min() > 0
    result: dict[str, Any] = {
        "session": str(out),
        "rtevo": {"recorded": session.versions, "now": __version__},
        "changed": changed,
        "images": len(keys),
        "scored": int(both.sum()),
        "scores_identical": bool(np.array_equal(pairs[:, 0], pairs[:, 1], equal_nan=True)),
        "latents_identical": all(np.array_equal(asked[key], shown[key]) for key in shown if key in asked),
        "rank_correlation": round(float(spearmanr(*pairs[both].T).statistic), 4) if enough else None,
        "correlation": round(float(np.corrcoef(pairs[both].T)[0, 1]), 4) if enough else None,
        "selected": {"recorded": len(chosen[0]), "now": len(chosen[1]), "both": len(chosen[0] & chosen[1])},
        "fittest": {name: _fittest(rows) for name, rows in (("recorded", before), ("now", now))},
    }
    np.savez_compressed(
        into / "rerun.npz",
        generation=np.array([g for g, _ in asked], np.int32),
        candidate=np.array([c for _, c in asked], np.int32),
        latents=np.array(list(asked.values()), np.float32),
    )
    (into / "rerun.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _write_table(into / "rerun.tsv", keys, before, now, chosen, alike)
    _draw(out, result, pairs, keys, chosen, alike, into / "rerun.png")
    for name in ("latent_space.npz", "session.toml"):
        if not (into / name).exists():
            shutil.copyfile(out / name, into / name)
    return result


def _fittest(rows: dict[Key, dict[str, float]]) -> str | None:
    known = {key: row["fitness"] for key, row in rows.items() if not math.isnan(row["fitness"])}
    return "{}/{}".format(*max(known, key=lambda key: known[key])) if known else None


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _write_table(
    path: Path, keys: list[Key], before: dict[Key, Any], now: dict[Key, Any], chosen: tuple[set[Key], set[Key]], alike: dict[Key, float]
) -> None:
    columns = ["generation", "candidate", "score_recorded", "score", "score_se_recorded", "score_se", "fitness_recorded", "fitness"]
    columns += ["selected_recorded", "selected", "asked_cosine"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for key in keys:
            pairs = [which[key][name] for name in ("score", "score_se", "fitness") for which in (before, now)]
            cells = [*key, *pairs, int(key in chosen[0]), int(key in chosen[1]), round(alike.get(key, math.nan), 6)]
            writer.writerow(["n/a" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells])


def _draw(
    out: Path,
    result: dict[str, Any],
    pairs: NDArray[Any],
    keys: list[Key],
    chosen: tuple[set[Key], set[Key]],
    alike: dict[Key, float],
    path: Path,
) -> None:
    """Scores then against now; what evolution would have asked for; the fittest images of both."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(12, 4.6), dpi=110, facecolor="white", layout="constrained")
    figure.suptitle(f"{out.name} computed again: " + ("; ".join(result["changed"]) or "same settings"), fontsize=9, x=0.01, ha="left")
    scatter, course, fittest = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    kind = np.array([(key in chosen[0]) + 2 * (key in chosen[1]) for key in keys])
    for value, color, label in (
        (3, ACCENT, "selected then and now"),
        (1, SECOND, "only then"),
        (2, "#5b4b8a", "only now"),
        (0, "#c8ced4", "never"),
    ):
        scatter.plot(*pairs[kind == value].T, "o", color=color, label=f"{label} ({int((kind == value).sum())})", markersize=5)
    rank = result["rank_correlation"]
    scatter.set(xlabel="score as recorded", ylabel="score now", title=f"Scores (rank correlation {'-' if rank is None else f'{rank:.3f}'})")
    scatter.legend(fontsize=7, frameon=False)
    course.plot([key[0] for key in alike], list(alike.values()), "o", color=ACCENT, alpha=0.5, markersize=4)
    course.set(
        xlabel="generation",
        ylabel="cosine of what was asked for then and now",
        ylim=(-1.05, 1.05),
        title="What evolution would have asked for",
    )
    course.xaxis.get_major_locator().set_params(integer=True)
    fittest.set_axis_off()
    fittest.set_title("Fittest: as recorded | now")
    for place, name in enumerate(("recorded", "now")):
        best = result["fittest"][name]
        if best and (picture := image_path(out, *map(int, best.split("/")))).exists():
            inner = fittest.inset_axes((0.5 * place + 0.02, 0.25, 0.46, 0.6))
            inner.imshow(Image.open(picture))
            inner.set(xticks=[], yticks=[], xlabel=best)
    figure.savefig(path)
