"""A recorded session computed again: ``python -m rtevo.run --rerun OUT``.

From the volumes as they came and the recorded events, motion, scores, fitness and what evolution asks for are computed anew, in one process
and without a clock. With the session's own settings all of it is the same to the last bit; with others (another decoder, response,
strategy) what comes out is compared with what was recorded: the images that were shown stay the same, their scores and what would have
been selected and asked for do not.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtevo.config import Config
from rtevo.errors import ConfigError, DataError
from rtevo.past.comparison import compare
from rtevo.past.evolution import Past, go_through, measured
from rtevo.record import LOG, LogWriter, finalise, floats, read_log, volume_path
from rtevo.records import VolumeFlag
from rtevo.session.plan import MEASURED

if TYPE_CHECKING:
    from rtevo.decode import Score

__all__ = ["rerun"]

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
    log = read_log(out / LOG)
    changed = _changed(recorded, config)
    _check(out, log, recorded, config)
    from threadpoolctl import threadpool_limits

    into.mkdir(parents=True)
    with threadpool_limits(1):  # as in a session: sums in another order differ in their last bit
        scores = _decode(out, log, config)
        past = _evolve(out, log, config, scores)
    _write_log(log, scores, past, into)
    finalise(into)
    return compare(out, log, past, changed, into)


def _changed(recorded: Config, config: Config) -> list[str]:
    """Name the settings that are not the session's own, with both values."""
    before, now = asdict(recorded), asdict(config)
    return [
        f"[{section}] {key}: {before[section][key]!r} -> {value!r}"
        for section, own in now.items()
        for key, value in own.items()
        if value != before[section][key] and (section, key) != ("record", "out")
    ]


def _check(out: Path, log: list[dict[str, Any]], recorded: Config, config: Config) -> None:
    before, now = asdict(recorded), asdict(config)
    fixed = [(s, k) for s, keys in _AS_RECORDED.items() for k in keys if before[s][k] != now[s][k]]
    if fixed:
        raise ConfigError(
            [f"[{s}] {k}: expected {before[s][k]!r} as in the session that is computed again, got {now[s][k]!r}" for s, k in fixed]
        )
    wanted = [r["index"] for r in log if r["type"] == "volumes" and not r["flags"] & VolumeFlag.MISSING]
    absent = [index for index in wanted if not volume_path(out, index).exists()]
    if not wanted:
        raise DataError(f"--rerun {out}: expected at least one volume, the session recorded none")
    if absent:
        raise DataError(
            f"--rerun {out}: {len(absent)} of {len(wanted)} volumes as they came are not there (first: {volume_path(out, absent[0])}); "
            'sessions keep them with [record] save_volumes = "raw"'
        )


# --- decoding ------------------------------------------------------------------------------------------------------------------------


class _Decoded:
    """What decoding gives, by the number of the record that it follows."""

    def __init__(self) -> None:
        self.records: dict[int, list[dict[str, Any]]] = {}
        self.scores: list[tuple[int, Score]] = []  # with the number of the volume, counted from 0, after which it came


def _decode(out: Path, log: list[dict[str, Any]], config: Config) -> _Decoded:
    from rich.progress import track

    from rtevo.decode import Decoder
    from rtevo.past.decoding import Again
    from rtevo.realign import warm_up
    from rtevo.session.decoding import Decoding
    from rtevo.session.placing import Hints

    warm_up()
    folder = Path(config.decoder.folder) if config.decoder.folder else out / "decoder"
    decoder = Decoder.load(folder, config.decoder.name or None)
    hints = Hints.of(config, decoder)
    recorded = {(r["index"], r["flags"] & VolumeFlag.LATE): r for r in log if r["type"] == "aligned"}  # a gap, and what came late
    found, volume = _Decoded(), -1
    again = Again(out, log, lambda first, decide: Decoding(config, decoder, log[0]["tr_s"], first, decide, hints))
    for record, aligned, scores, reliability in track(again, "computing", again.volumes, transient=True):
        own = found.records.setdefault(record["seq"], [])
        if aligned is not None:
            volume += 1
            times = recorded.get((aligned.index, aligned.flags & VolumeFlag.LATE), {**record, "aligned_ns": record["ingested_ns"]})
            own.append(
                {
                    "type": "aligned",
                    **{name: times[name] for name in ("index", "acquired_s", "closed_ns", "ingested_ns", "aligned_ns")},
                    "flags": aligned.flags,
                    "motion": aligned.motion.tolist(),
                    "framewise_displacement_mm": aligned.displacement_mm,
                    "dvars_percent": aligned.dvars_percent,
                    "tsnr": aligned.tsnr,
                }
            )
        for score in scores:
            found.scores.append((volume, score))
            own.append(
                {
                    "type": "scores",
                    "generation": score.key[0],
                    "candidate": score.key[1],
                    **{name: getattr(score, name) for name in ("revision", "volumes_used", "score", "score_se", "onset_s")},
                    "reliability": reliability,
                    "closed_ns": 0,
                    "scored_ns": 0,
                }
            )
    again.decoding.close()
    return found


# --- evolution -----------------------------------------------------------------------------------------------------------------------


def _evolve(out: Path, log: list[dict[str, Any]], config: Config, decoded: _Decoded) -> Past:
    """Tell a fresh evolution the new scores, in the order in which they would have come."""
    from rtevo.latent import LatentSpace
    from rtevo.session import course

    space = LatentSpace.load(out / "latent_space.npz")
    condition = course.check(config, space)
    images = [r for r in log if r["type"] == "images"] if config.evolution.use_post_encodings else []
    place = {(r["generation"], r["candidate"]): space.to_latent(floats(r["embedding"])[np.newaxis])[0] for r in images}
    told, taken = measured(log, condition), _same
    if condition not in MEASURED:
        names = [(r["generation"], r["candidate"], r["revision"]) for r in log if r["type"] == "scores"]
        told = [(score.key, score.score, score.score_se) for _, score in decoded.scores]
        if names != [(*score.key, score.revision) for _, score in decoded.scores]:
            taken = _by_volumes(log, [volume for volume, _ in decoded.scores])
    try:
        return go_through(course.make_course(config, condition, space), log, told, place, taken)
    except ValueError as problem:
        raise ConfigError(f"--rerun {out}: evolution with these settings does not fit the recorded images: {problem}") from None


def _same(recorded: int) -> int:
    return recorded


def _by_volumes(log: list[dict[str, Any]], volumes: list[int]) -> Any:
    """Give the function from the number of recorded scores to that of new ones that were there with the same volume."""
    at, last = [-1], -1
    for record in log:
        last += record["type"] == "aligned"
        if record["type"] == "scores":
            at.append(last)
    return lambda recorded: bisect_right(volumes, at[min(recorded, len(at) - 1)])


def _write_log(log: list[dict[str, Any]], decoded: _Decoded, past: Past, into: Path) -> None:
    """Write the session's log with what was computed in place of what was recorded."""
    fitness = [
        {
            "type": "fitness",
            "generation": told.generation,
            "candidate": told.candidate,
            "fitness": told.fitness,
            "fitness_se": told.fitness_se,
            "scores_taken": number,
            "given_up": int(given_up),
            "decided_ns": 0,
        }
        for told, number, given_up in past.steps
    ]
    with LogWriter(into / LOG) as new:
        for record in log:
            last = record is log[-1]
            computed = decoded.records.get(record["seq"], [])
            for own in [*([record] if record["type"] == "volumes" else []), *computed, *(fitness if last else [])]:
                new.append(own["type"], {k: v for k, v in own.items() if k not in ("seq", "type", "clock_ns")}, record["clock_ns"])
            if record["type"] not in ("aligned", "scores", "fitness", "volumes"):
                new.append(record["type"], {k: v for k, v in record.items() if k not in ("seq", "type", "clock_ns")}, record["clock_ns"])


# --- comparison ----------------------------------------------------------------------------------------------------------------------
